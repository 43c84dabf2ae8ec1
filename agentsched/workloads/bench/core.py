"""How long the core takes to decide, by number of live programs.

A fleet of engines whose calls take fixed times (``fixed_engine``) is simulated until so many programs live:
as many as fit have seats, some of them computing and some in short gaps of tools; some wait for a seat;
all others are away for long, as agents are whose people think. Programs end, and others follow. Then
a number of events is measured, each as the CPU time of one ``handle``: what others do on the machine
does not count. The baseline is ``fcfs-lru``, which decides next to nothing.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from array import array
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

import click
from rich.console import Console
from rich.table import Table

from agentsched import __version__
from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.core.decisions import AnyDecision
from agentsched.core.log import Entry
from agentsched.workloads.bench import _found
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.fixed_engine import FINISH_S, FixedEngine
from agentsched.workloads.scripts import Script, Turn
from agentsched.workloads.simulate import OptionError, check_policies
from agentsched.workloads.simulator import Simulation
from agentsched.workloads.summary import describe_host, percentile

RESULTS = Path(__file__).parents[1] / "results"
BASELINE = "fcfs-lru"

CAPACITY_TOKENS = 450_000
MOST_ENGINES = 64
PROGRAMS_AN_ENGINE = 100
SEATS_AN_ENGINE = 40
"""About as many programs of this size fit."""

MOST_WAITING = 4_000
BURST_CALLS = 4
SHORT_GAP_S = 1.5
BURST_S = 1.5 * BURST_CALLS * (FINISH_S + SHORT_GAP_S)
"""How long a burst keeps a seat, until somebody else gets it."""

LOAD_CALL_S = 3 * FINISH_S
"""While loading, a seat is free again for the next program after so long."""

SETTLE_S = 60.0
SHAPES = 512
"""Different programs; all others are copies of these, which makes loading fast."""


class Fleet:
    """The core under ``size`` live programs. ``took_s``, ``kinds``: of every handle since it was loaded."""

    def __init__(self, policy: str, size: int) -> None:
        self.core = Core(make_policy(policy))
        self.took_s = array("d")
        self.kinds: list[str] = []
        self.engines = max(1, min(MOST_ENGINES, size // PROGRAMS_AN_ENGINE))
        seats = self.engines * SEATS_AN_ENGINE
        away = max(size // 4, size - seats - min(size // 4, MOST_WAITING))
        shapes = _Shapes(long_gap_s=BURST_S * away / seats)
        every_s = LOAD_CALL_S / seats
        self._now = size * every_s + SETTLE_S
        self._simulation = Simulation(
            self,  # type: ignore[arg-type]  # it stands before the core, with a stop watch
            [FixedEngine(f"e{number}", CAPACITY_TOKENS) for number in range(self.engines)],
            shapes.first(size, every_s),
            Conditions(concurrency=size),
            then=shapes.then(),
            log=_drop,
        )
        self._simulation.run(until_s=self._now)
        self.took_s, self.kinds = array("d"), []

    def handle(self, now: float, event: ev.AnyEvent) -> list[AnyDecision]:
        begin_ns = time.thread_time_ns()
        decided = self.core.handle(now, event)
        self.took_s.append((time.thread_time_ns() - begin_ns) / 1e9)
        self.kinds.append(type(event).__name__)
        return decided

    def next_wakeup(self) -> float | None:
        return self.core.next_wakeup()

    def measure(self, events: int) -> None:
        """Go on until so many events were handled since loading."""
        while len(self.took_s) < events:
            self._now += 1.0
            self._simulation.run(until_s=self._now)

    def shares(self) -> dict[str, int]:
        """How many programs live, and where they are."""
        state = self.core.state
        seated = [program for seats in state.seats.values() for program in seats.values()]
        live, waiting = len(state.programs), len(state.queue)
        computing = sum(not program.in_gap for program in seated)
        return {
            "live": live,
            "computing": computing,
            "seated_in_gap": len(seated) - computing,
            "waiting": waiting,
            "away": live - len(seated) - waiting,
        }


class _Shapes:
    """Bursts of calls with short gaps between them, and a long gap after each burst."""

    def __init__(self, long_gap_s: float) -> None:
        self._random, self._long_gap_s = Random(0), long_gap_s

    def first(self, size: int, every_s: float) -> list[Script]:
        """Who is there at first: after one call away for long, so that all have begun soon."""
        shapes = [self._turns(1) for _ in range(SHAPES)]
        return [Script(f"a{n}", n * every_s, shapes[n % SHAPES]) for n in range(size)]

    def then(self) -> Iterator[Script]:
        shapes = [self._turns(BURST_CALLS) for _ in range(SHAPES)]
        return (Script(f"b{n}", 0.0, shapes[n % SHAPES]) for n in count())

    def _turns(self, first_burst: int) -> tuple[Turn, ...]:
        random = self._random
        turns: list[Turn] = []
        for burst in range(random.randint(2, 5)):
            calls = BURST_CALLS if burst else first_burst
            for call in range(calls):
                if call == calls - 1:
                    tool, gap_s = "ask", random.expovariate(1 / self._long_gap_s)
                else:
                    tool, gap_s = "bash", random.lognormvariate(0, 0.8) * SHORT_GAP_S
                new_tokens = 1 + int(random.lognormvariate(0, 0.8) * 600) if turns else 4_000
                turns.append(Turn(new_tokens, 100, gap_s, tool))
        return tuple(turns)


def _drop(entry: Entry) -> None:
    """The log of a benchmark is nobody's."""


Row = dict[str, object]


def measure(policy: str, size: int, events: int) -> Row:
    """One row of the results: microseconds."""
    begin_s = time.perf_counter()
    fleet = Fleet(policy, size)
    loaded_s = time.perf_counter() - begin_s
    gc.collect()
    fleet.measure(events)
    us = [1e6 * took_s for took_s in fleet.took_s]
    kinds: dict[str, list[float]] = {}
    for kind, took in zip(fleet.kinds, us, strict=True):
        kinds.setdefault(kind, []).append(took)
    return {
        "policy": policy,
        "programs": size,
        "engines": fleet.engines,
        "shares": fleet.shares(),
        "loaded_s": round(loaded_s, 1),
        "events": len(us),
        **_statistics(us),
        "by_event": {
            kind: {"events": len(took), **_statistics(took)} for kind, took in sorted(kinds.items())
        },
    }


def _statistics(us: list[float]) -> dict[str, float]:
    return {
        "median_us": round(statistics.median(us), 1),
        "mean_us": round(statistics.fmean(us), 1),
        "p99_us": round(percentile(us, 99), 1),
    }


def growth(rows: list[Row], policy: str, figure: str) -> list[str]:
    """For each size past the smallest: how the figure grew, and how log n did."""
    mine = [(int(str(row["programs"])), float(str(row[figure]))) for row in rows if row["policy"] == policy]
    if not mine:
        return []
    (least, base), *further = sorted(mine)
    lines = []
    for size, value in further:
        grew, allowed = value / base, math.log(size) / math.log(least)
        verdict = "no faster than log n" if grew <= allowed else "FASTER than log n"
        lines.append(
            f"{policy}, {figure.removesuffix('_us')}: {least:,} to {size:,} programs: "
            f"{grew:.2f}x where log n grows {allowed:.2f}x: {verdict}"
        )
    return lines


@click.command()
@click.option(
    "--programs",
    "sizes",
    multiple=True,
    type=click.IntRange(2),
    default=(100, 1_000, 10_000, 100_000),
    show_default=True,
    help="Live programs; may be repeated.",
)
@click.option("--policies", default=f"{BASELINE},agentsched", show_default=True)
@click.option("--events", default=20_000, show_default=True, type=click.IntRange(100), help="Measured, each.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="[default: the package's]")
def main(sizes: tuple[int, ...], policies: str, events: int, results: Path) -> None:
    """CPU time of core.handle, by policy and number of live programs."""
    names = [name.strip() for name in policies.split(",")]
    try:
        check_policies(names)
    except OptionError as error:
        raise click.ClickException(str(error)) from None
    console = Console()
    rows: list[Row] = []
    for size in sorted(sizes):
        for policy in names:
            rows.append(measure(policy, size, events))
            row = rows[-1]
            console.print(f"{policy}, {size:,}: median {row['median_us']} us, loaded in {row['loaded_s']} s")
    checks = [
        line
        for name in names
        for figure in ("median_us", "mean_us", "p99_us")
        for line in growth(rows, name, figure)
    ]
    console.print(_table(rows))
    for line in checks:
        console.print(line)
    found = _found.headed("core", {"growth": checks, "decisions": rows})
    _found.keep(found, results / "core.json", console)
    (results / "core.md").write_text(_markdown(found["command"], rows, checks))


def _markdown(command: str, rows: list[Row], checks: list[str]) -> str:
    host = ", ".join(f"{name} {value}" for name, value in describe_host().items())
    lines = [
        "# Time of a decision",
        "",
        f"`{command}`, agentsched {__version__}; made on {host}. CPU time of one `handle`, over all kinds of",
        "events as they come in a loaded fleet; docs/simulate.md says how it is loaded.",
        "",
        "| live programs | engines | computing / in gap / waiting / away | policy | median | mean | P99 us |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = row["shares"]
        assert isinstance(shares, dict)
        where = " / ".join(f"{shares[name]:,}" for name in ("computing", "seated_in_gap", "waiting", "away"))
        figures = " | ".join(f"{row[name]:.1f}" for name in ("median_us", "mean_us", "p99_us"))
        lines.append(f"| {row['programs']:,} | {row['engines']} | {where} | {row['policy']} | {figures} |")
    return "\n".join([*lines, "", *(f"- {check}" for check in checks), ""])


def _table(rows: list[Row]) -> Table:
    table = Table("live programs", "engines", "policy", "median us", "mean us", "P99 us")
    for row in rows:
        figures = [f"{row[name]:.1f}" for name in ("median_us", "mean_us", "p99_us")]
        table.add_row(f"{row['programs']:,}", str(row["engines"]), str(row["policy"]), *figures)
    return table


if __name__ == "__main__":
    main()
