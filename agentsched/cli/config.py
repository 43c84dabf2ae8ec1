"""``agentsched config``: the configuration file, written, checked and explained."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click
import msgspec

from agentsched.daemon.config import ConfigError, load_config
from agentsched.daemon.config_pages import reference, template

_FILE = click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))


@click.group()
def config() -> None:
    """Write, check and explain the configuration file of `agentsched serve`."""


@config.command()
def new() -> None:
    """Print a file with every key at its default."""
    click.echo(template())


@config.command()
@_FILE
def check(file: Path) -> None:
    """Say whether FILE is right; exit status 1 if it is not."""
    _load(file)
    click.echo(f"{file} is right")


@config.command()
@_FILE
def show(file: Path) -> None:
    """Print, as JSON, all that holds with FILE."""
    shown = msgspec.json.encode(_load(file), enc_hook=str, order="deterministic")
    click.echo(msgspec.json.format(shown).decode())


@config.command(name="reference")
def reference_() -> None:
    """Print the reference page (docs/configuration.md)."""
    click.echo(reference(), nl=False)


@config.command()
@click.argument("name", type=click.Choice(["agentsched.service", "grafana.json"]))
def example(name: str) -> None:
    """Print a systemd unit, or a Grafana dashboard for the metrics."""
    click.echo(files("agentsched.daemon.operating").joinpath(name).read_text("utf-8"), nl=False)


def _load(file: Path) -> object:
    try:
        return load_config(file)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
