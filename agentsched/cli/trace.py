"""``agentsched trace``: a daemon's event log as a trace."""

from __future__ import annotations

from pathlib import Path

import click

from agentsched.core.log import LogError
from agentsched.workloads.record import SOURCE, sessions_from_log
from agentsched.workloads.sessions import write_sessions


@click.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The trace file to write; gzipped if its name ends in .gz.",
)
@click.option("--source", default=SOURCE, show_default=True, help="Name of this set of programs.")
def trace(log: Path, out: Path, source: str) -> None:
    """Make a trace for the simulator from LOG, the event log of 'agentsched serve --log LOG'.

    Each program becomes a session: the tokens of its calls, its gaps, and its tools with what they used.
    """
    try:
        with log.open("rb") as lines:
            sessions = sessions_from_log(lines, source)
        write_sessions(out, sessions)
    except (LogError, OSError) as error:
        raise click.ClickException(f"{log}: {error}" if isinstance(error, LogError) else str(error)) from None
    calls = sum(len(session.turns) for session in sessions)
    click.echo(f"{out}: {len(sessions)} programs, {calls} calls")
