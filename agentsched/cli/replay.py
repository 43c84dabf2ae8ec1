"""``agentsched replay``: event logs through the core, and whether it decides now as it did then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import click
import msgspec

from agentsched import __version__
from agentsched.core.decisions import AnyDecision
from agentsched.core.log import Header, LogError, Step, read, steps

# \b keeps click from rewrapping the paragraph that follows
EPILOG = """\b
Example: a daemon with a log, and all files of it
  agentsched serve --port 8090 --log events.jsonl
  agentsched replay events*.jsonl
"""

_SHOWN = 5
"""Decisions that are shown at most on each side of a difference."""


@click.command(epilog=EPILOG)
@click.argument(
    "logs",
    metavar="LOG...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
def replay(logs: tuple[Path, ...]) -> int:
    """Feed event logs of 'agentsched serve --log LOG' through the core, and compare its decisions.

    Each file begins with the core as it was then, so each is replayed by itself. The exit status is 1 if a
    decision differs: the log is of another version of agentsched, or the core is not deterministic.
    """
    return 1 if [log for log in logs if not _replays(log)] else 0


def _replays(log: Path) -> bool:
    events = decisions = agreeing = missing = 0
    first: Step | None = None
    try:
        with log.open("rb") as lines:
            header, entries = read(lines)
            for step in steps(header, entries):
                events += 1
                decisions += len(step.logged)
                agreeing += sum(a == b for a, b in zip(step.logged, step.decided, strict=False))
                if step.agrees:
                    missing = len(step.decided) - len(step.logged)
                elif first is None:
                    first = step
        cut = _is_cut(log)
    except (LogError, OSError) as error:
        raise click.ClickException(f"{log}: {error}") from None
    click.echo(f"{log}: {events:,} events, {agreeing:,} of {decisions:,} decisions agree")
    if cut or missing:
        click.echo(f"  note: it was cut off in the middle of its last entry{_lost(missing)}")
    if header.agentsched != __version__:
        click.echo(f"  note: it was written by agentsched {header.agentsched}; this is {__version__}")
    if first is not None:
        click.echo("\n".join(_difference(header, first)))
    return first is None


def _lost(decisions: int) -> str:
    return f"; {decisions} decisions on its last event are not in it" if decisions else ""


def _is_cut(log: Path) -> bool:
    with log.open("rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


def _difference(header: Header, step: Step) -> Iterator[str]:
    yield f"  first difference at line {step.line}, {step.now:.3f} s (policy {header.policy}):"
    yield f"    event     {_line(step.event)}"
    if step.impossible:
        yield f"    the core cannot take it: {step.impossible}"
        return
    pairs = zip_longest(step.logged, step.decided)
    at = next((i for i, (logged, decided) in enumerate(pairs) if logged != decided), 0)
    yield from _side("logged", step.logged[at:])
    yield from _side("replayed", step.decided[at:])


def _side(name: str, decisions: Sequence[AnyDecision]) -> Iterator[str]:
    for decision in decisions[:_SHOWN]:
        yield f"    {name:<9} {_line(decision)}"
    if not decisions:
        yield f"    {name:<9} no further decision"
    elif len(decisions) > _SHOWN:
        yield f"    {name:<9} and {len(decisions) - _SHOWN} more"


def _line(value: object) -> str:
    return msgspec.json.encode(value).decode()
