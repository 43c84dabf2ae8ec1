"""``agentsched graph``: what programs did, or tend to do, from an event log."""

from __future__ import annotations

from pathlib import Path

import click

from agentsched.core.log import LogError, read
from agentsched.graphs.aeg import Aeg, Capture
from agentsched.graphs.draw import to_svg
from agentsched.graphs.draw_model import model_to_svg
from agentsched.graphs.export import model_to_json, to_graphml, to_json
from agentsched.graphs.model import AegModel, steps_of


@click.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--program", metavar="NAME", help="The graph of this program.")
@click.option("--model", "as_model", is_flag=True, help="What all programs of the log tend to do (default).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "graphml", "svg"]),
    help="Default: what the name of --out says, else json.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write here, not to stdout.")
def graph(log: Path, program: str | None, as_model: bool, form: str | None, out: Path | None) -> None:
    """Export or draw execution graphs from LOG, the event log of 'agentsched serve --log LOG'."""
    if program is not None and as_model:
        raise click.UsageError("--program and --model exclude each other")
    programs = _programs(log)
    if program is not None and program not in programs:
        some = ", ".join(sorted(programs)[:5]) or "none at all"
        raise click.ClickException(f"{log} has no program {program!r}; it has {len(programs)}, as {some}")
    subject = _model(programs) if program is None else programs[program]
    content = _encoded(subject, form or _form_of(out))
    if out is None:
        click.echo(content, nl=False)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{out}: {_said(subject)}")


def _programs(log: Path) -> dict[str, Aeg]:
    capture = Capture()
    try:
        with log.open("rb") as lines:
            _, entries = read(lines)
            for entry in entries:
                if entry.event is not None:
                    capture.feed(entry.now, entry.event)
    except LogError as error:
        raise click.ClickException(f"{log}: {error}") from None
    except OSError as error:
        raise click.ClickException(str(error)) from None
    return capture.programs


def _model(programs: dict[str, Aeg]) -> AegModel:
    """Learned in the order in which programs ended, those that have not ended last."""
    model = AegModel()
    for aeg in sorted(programs.values(), key=lambda aeg: (aeg.closed_s is None, aeg.closed_s, aeg.opened_s)):
        model.learn(steps_of(aeg), ended=aeg.closed_s is not None)
    return model


def _form_of(out: Path | None) -> str:
    suffix = out.suffix.lstrip(".").lower() if out is not None else ""
    return suffix if suffix in ("graphml", "svg") else "json"


def _encoded(subject: Aeg | AegModel, form: str) -> bytes:
    match form:
        case "graphml":
            return to_graphml(subject)
        case "svg":
            svg = model_to_svg(subject) if isinstance(subject, AegModel) else to_svg(subject)
            return svg.encode() + b"\n"
        case _:
            return (model_to_json(subject) if isinstance(subject, AegModel) else to_json(subject)) + b"\n"


def _said(subject: Aeg | AegModel) -> str:
    if isinstance(subject, AegModel):
        return f"the model of {subject.programs} programs"
    return f"program {subject.program}: {len(subject.calls)} calls, {len(subject.tools)} tool calls"
