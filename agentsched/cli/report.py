"""``agentsched report``: a recorded period as one HTML file, with the dashboard's page in it."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from agentsched.core.log import LogError, read
from agentsched.daemon.dashboard.recorded import recorded
from agentsched.daemon.dashboard.reporting import page_of

TELL_EVERY_S = 0.5

# \b keeps click from rewrapping the paragraph that follows
EPILOG = """\b
Examples:
  agentsched serve --log events.jsonl       # a daemon that writes the log
  agentsched report events.jsonl            # all of it, as events.html
  # ten minutes of it, from half an hour after its beginning on
  agentsched report events.jsonl --from 1800 --to 2400 --out incident.html
  agentsched report events*.jsonl           # a log that went on in further files

The page opens in any browser, with no daemon and no network. Prompts and
answers are not in it; names of programs, tenants and tools are.
"""


@click.command(epilog=EPILOG)
@click.argument(
    "logs",
    metavar="LOG...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--from", "from_s", type=float, default=-math.inf, help="Begin so many seconds into LOG.")
@click.option("--to", "to_s", type=float, default=math.inf, help="End so many seconds into LOG.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write here.  [default: LOG's name, .html]"
)
def report(logs: tuple[Path, ...], from_s: float, to_s: float, out: Path | None) -> None:
    """Write one HTML file that shows what LOG recorded: programs, KV, tools, and each decision with its
    reason, at every moment of it."""
    if to_s <= from_s:
        raise click.UsageError(f"--to {to_s:g} is not after --from {from_s:g}")
    out = out or Path(logs[0].with_suffix(".html").name)
    try:
        begin_s = min(_begin_s(log) for log in logs)
        with _progress(begin_s) as progress:
            view = recorded(logs, begin_s + from_s, begin_s + to_s, progress)
        page = page_of(view, f"agentsched: {logs[0].name}")
        out.write_bytes(page)
    except LogError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{out}: {error.strerror or error}") from None
    length_s = view.at_s - view.since_s
    click.echo(
        f"{out}: {len(view.programs):,} programs, {len(view.items):,} decisions, {length_s:,.0f} s, "
        f"{len(page) / 1e6:.1f} MB"
    )
    for note in view.notes:
        click.echo(f"  note: {note}")


def _begin_s(log: Path) -> float:
    try:
        with log.open("rb") as lines:
            _, entries = read(lines)
            return next((entry.now for entry in entries), math.inf)
    except LogError as error:
        raise LogError(f"{log}: {error}") from None


@contextlib.contextmanager
def _progress(begin_s: float) -> Iterator[Callable[[float], None] | None]:
    """A line that changes in a terminal, and none elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    told_s = 0.0

    def tell(now: float) -> None:
        nonlocal told_s
        if time.monotonic() >= told_s + TELL_EVERY_S:
            told_s = time.monotonic()
            click.echo(f"\rreplaying, at {now - begin_s:,.0f} s ", nl=False, err=True)

    try:
        yield tell
    finally:
        click.echo("\r" + " " * 40 + "\r", nl=False, err=True)
