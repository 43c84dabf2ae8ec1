"""What a comparison runs, and where each run stands in its tables.

A ``Run`` is one simulation; its result is kept under it, whichever tables want it. A ``Cell`` is a run's
place in a table: two cells of different groups may be the same run, which is then made once.
"""

from __future__ import annotations

import time

import msgspec

from agentsched.core.log import Entry
from agentsched.workloads.grid.by_hand import set_by_hand
from agentsched.workloads.simulate import Options, simulate
from agentsched.workloads.summary import Summary, SummaryError

LOOK_EVERY = 1_000
"""Entries of the log between two looks at the clock."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """``constants`` of the policy that are set by hand (``by_hand.CONSTANTS``); else all are its own."""

    policy: str
    options: Options
    constants: tuple[tuple[str, float], ...] = ()


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """``at``: what the group varies (pressure, share of the packing bound). ``row``: what sets the cell apart
    from others of the same group, case, policy and ``at``, seeds aside. ``packing``: tasks an hour that
    fit all engines."""

    group: str
    case: str
    at: float
    run: Run
    row: str = ""
    packing: float

    @property
    def amount(self) -> float:
        """Programs at once, or arrivals an hour."""
        options = self.run.options
        return float(options.concurrency if options.rate is None else options.rate)  # type: ignore[arg-type]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was made, as a line of the file of runs. ``stopped``: why it has no summary.
    ``cpu_s``: what it took of a core."""

    run: Run
    cpu_s: float
    summary: Summary | None = None
    stopped: str = ""


class TooSlowError(Exception):
    """The run took longer than a cell may."""


def make_run(run: Run, packing: float, most_s: float) -> Done:
    """Make it, within ``most_s`` seconds of one core, or say that it took longer.

    The bound on recomputation is worked out after the run, and is not under this limit.
    """
    began_s, entries = time.process_time(), 0

    def look(_: Entry) -> None:
        nonlocal entries
        entries += 1
        if entries % LOOK_EVERY == 0 and time.process_time() - began_s > most_s:
            raise TooSlowError

    summary, stopped = None, ""
    try:
        with set_by_hand(run.constants):
            summary = simulate(run.options, run.policy, packing=packing, log=look)
    except TooSlowError:
        stopped = f"more than {most_s:g} s of computing"
    except SummaryError:
        stopped = "no program ended"
    return Done(run=run, cpu_s=round(time.process_time() - began_s, 2), summary=summary, stopped=stopped)
