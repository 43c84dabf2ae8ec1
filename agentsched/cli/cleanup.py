"""``agentsched cleanup``: removes what a killed run left behind."""

from __future__ import annotations

import shutil

import click

from agentsched.cgroups import HostRefused, leftovers
from agentsched.workloads import scratch


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def cleanup(dry_run: bool) -> None:
    """Thaw, kill and remove the sandboxes of runtimes that are dead, and scratch folders of dead runs.

    Sandboxes of live runtimes are never touched, and neither are those of other pid namespaces
    (containers), of which nothing can be known from here.
    """
    found = leftovers.find()
    failed = 0
    for instance in found:
        what = f"{len(instance.folders)} cgroup trees, {len(instance.pids)} processes"
        if instance.alive is None:
            click.echo(f"left alone: {instance.name} ({what}): belongs to another pid namespace")
        elif instance.alive:
            click.echo(f"left alone: {instance.name} ({what}): its runtime is alive")
        elif dry_run:
            click.echo(f"would remove: {instance.name} ({what})")
        else:
            failed += not _remove(instance, what)
    folders = scratch.abandoned()
    for folder in folders:
        click.echo(f"{'would remove' if dry_run else 'removed'}: {folder}")
        if not dry_run:
            shutil.rmtree(folder)
    if not folders and all(instance.alive is not False for instance in found):
        click.echo("nothing to clean up")
    if failed:
        raise click.ClickException(f"{failed} could not be removed wholly")


def _remove(instance: leftovers.Instance, what: str) -> bool:
    try:
        leftovers.remove(instance)
    except HostRefused as error:
        click.echo(f"not removed: {instance.name}: {error}", err=True)
        return False
    click.echo(f"removed: {instance.name} ({what})")
    return True
