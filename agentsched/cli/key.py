"""``agentsched key``: make API keys for the file of tenants."""

from __future__ import annotations

import json
import re

import click

from agentsched.daemon.keys import hashed, new_secret

_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@click.group()
def key() -> None:
    """Make API keys for the file that `agentsched serve --tenants` reads."""


@key.command()
@click.argument("tenant", required=False)
@click.option("--admin", is_flag=True, help="A key of the admin endpoints, not of a tenant.")
def new(tenant: str | None, admin: bool) -> None:
    """Make a key of TENANT, or of the admin endpoints, and the lines of the file that let it in.

    The key itself is shown here and never again: the file has only its hash. Nothing is written anywhere.
    """
    if (tenant is None) is not admin:
        raise click.UsageError("name a TENANT, or give --admin for a key of the admin endpoints")
    if tenant is not None and not _TENANT.fullmatch(tenant):
        raise click.UsageError(
            f"TENANT: {tenant!r} must be 1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or digit"
        )
    secret = new_secret()
    click.echo(f"key: {secret}\n", err=True)
    click.echo("in the tenants' file:", err=True)
    kept = json.dumps([hashed(secret)])
    if tenant is None:
        click.echo(f"admin_keys = {kept}")
    else:
        click.echo(f'[[tenants]]\nname = "{tenant}"\nkeys = {kept}')
