"""``agentsched fit``: a cost profile for the simulator, from measurement."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from agentsched.workloads.fit import Fit


@click.command()
@click.option(
    "--engine",
    type=click.Choice(["embedded"]),
    default="embedded",
    show_default=True,
    help="The engine to measure.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with config.json, instead of a preset.",
)
@click.option(
    "--preset",
    type=click.Choice(["demo", "tiny"]),
    default="demo",
    show_default=True,
    help="The small model with random weights to measure; made on first use.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=9,
    show_default=True,
    help="How often each kind of step is measured. More rounds help on a busy machine.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Write the profile here, as JSON.",
)
def fit(engine: str, model: Path | None, preset: str, rounds: int, out: Path) -> None:
    """Fit a cost profile for the simulator by measuring an engine on this machine.

    Drives the engine, on one core and in this process, through prefills and decodes of many sizes, and
    finds what a step, a prefilled token, a decoding row and their contexts cost. Prints how far the
    profile is off for each kind of step, beside the noise of the machine: an error near the noise is as
    good as can be measured here. 'both', steps that prefill and decode at once, is not used for the fit:
    it shows what the fit is worth. Takes about a minute with the model 'demo'.

    \b
    Example:
      agentsched fit --engine embedded --out here.json
      agentsched simulate TRACE --profile here.json
    """
    if not out.parent.is_dir():
        # said before the measurement, not a minute after
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    # torch takes seconds to import: not before the options are known to be right
    from agentsched.engines.embedded.preset import ensure_model
    from agentsched.engines.embedded.spec import ModelError
    from agentsched.workloads.fit import fit_embedded, save_fit

    def say(text: str) -> None:
        click.echo(f"agentsched: {text}", err=True)

    try:
        folder = model or ensure_model(user_cache_path("agentsched") / "models", progress=say, preset=preset)
        name = str(model) if model else f"preset {preset}"
        fitted = fit_embedded(folder, model=name, rounds=rounds, progress=say)
        save_fit(fitted, out)
    except (ModelError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    _tell(fitted)
    click.echo(f"{out}: the profile of {engine}, {fitted.model}")


def _tell(fitted: Fit) -> None:
    table = Table("steps", "kinds", "mean error", "worst error", "noise")
    for each in fitted.residuals:
        share = (f"{value:.1%}" for value in (each.mean_error, each.worst_error, each.noise))
        table.add_row(each.group + ("" if each.fitted else " (not fitted)"), str(each.points), *share)
    Console().print(table)
    for term, cost in asdict(fitted.profile).items():
        click.echo(f"  {term:17} {cost:.3g}")
