"""What do the BPF programs cost the commands that they watch, and all others?

Two loads, each made of what the programs look at: ``forks`` starts ``true`` again and again, ``switches``
passes a byte to and fro between two processes on one CPU. Each runs in a leaf that is watched, and in one
that is not (as everything else on the machine), with one program loaded, with all of them, and with none:
that is the baseline. The runs with programs and their baseline follow one another at once and take turns in
who is first, so that what else the machine does hits both alike.

The figure is the CPU time of the leaf by the kernel's own account. A BPF program runs in the time of whoever
meets its tracepoint, so that is where it shows; wall time would show the neighbours. The
ring buffer is read meanwhile, by a thread of this process, whose time is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from agentsched.cgroups import HostRefused, Sandbox
from agentsched.cgroups.bpf import Source
from agentsched.cgroups.bpf.kernel import KernelSource
from agentsched.cgroups.bpf.loading import PROGRAMS
from agentsched.cgroups.starting import inside
from agentsched.workloads.bench import _found

RESULT = Path("out/bench/bpf.json")

FORKS = "import os\nfor _ in range({n}): os.waitpid(os.posix_spawn('/bin/true', ['true'], {{}}), 0)\n"
SWITCHES = """
import os
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
there, back = os.pipe(), os.pipe()
if os.fork() == 0:
    for _ in range({n}): os.read(there[0], 1), os.write(back[1], b"x")
    os._exit(0)
for _ in range({n}): os.write(there[1], b"x"), os.read(back[0], 1)
os.wait()
"""
LOADS = {"forks": FORKS, "switches": SWITCHES}


class Cost(NamedTuple):
    """CPU time of one run with programs over that of the one beside it without; both in seconds."""

    with_s: float
    without_s: float

    @property
    def ratio(self) -> float:
        return self.with_s / self.without_s


@contextmanager
def loaded(programs: tuple[str, ...]) -> Iterator[Source]:
    """The programs, and somebody who reads what they tell."""
    source, over = KernelSource(programs), threading.Event()

    def read() -> None:
        while not over.is_set():
            source.events(0.05)

    reader = threading.Thread(target=read, name="reader")
    reader.start()
    try:
        yield source
    finally:
        over.set()
        reader.join()
        source.close()


def run(sandbox: Sandbox, script: str, source: Source | None) -> float:
    """CPU seconds that the leaf used."""
    with sandbox.leaf() as (_, leaf):
        if source is not None:
            source.watch(leaf)
        argv = inside([sys.executable, "-I", "-S", "-c", script], os.environ, leaf.entries())
        subprocess.run(argv, check=True)
        used_s = leaf.usage().cpu_s
        if source is not None:
            source.forget(leaf)
        return used_s


def start_up(sandbox: Sandbox) -> float:
    """What an interpreter takes to start and end."""
    return statistics.median(run(sandbox, "", None) for _ in range(5))


Case = tuple[str, bool]
"""A load, and whether it is watched."""


def runs(sandbox: Sandbox, scripts: dict[str, str], source: Source | None) -> dict[Case, float]:
    """CPU seconds of each case."""
    return {
        (load, watched): run(sandbox, script, source if watched else None)
        for load, script in scripts.items()
        for watched in (True, False)
    }


def compare(
    sandbox: Sandbox, programs: tuple[str, ...], scripts: dict[str, str], *, first: bool
) -> list[Any]:
    """All cases with the programs and without, the programs first or last: the two results in that order."""
    without = None if first else runs(sandbox, scripts, None)
    with loaded(programs) as source:
        beside = runs(sandbox, scripts, source)
    return [beside, without or runs(sandbox, scripts, None)]


def measure(rounds: int, sizes: dict[str, int], console: Console) -> dict[tuple[str, str, bool], list[Cost]]:
    """By programs, load and whether it is watched."""
    costs: dict[tuple[str, str, bool], list[Cost]] = defaultdict(list)
    sets = {name: (name,) for name in PROGRAMS} | {"all": PROGRAMS}
    scripts = {load: text.format(n=sizes[load]) for load, text in LOADS.items()}
    with Sandbox.open("bench-bpf") as sandbox:
        if sandbox.capabilities.backend == "none":
            raise click.ClickException("this needs cgroups: agentsched doctor says what is missing")
        idle_s = start_up(sandbox)
        for number in range(rounds):
            for name, programs in sets.items():
                beside, without = compare(sandbox, programs, scripts, first=bool(number % 2))
                for case, with_s in beside.items():
                    costs[name, *case].append(Cost(with_s - idle_s, without[case] - idle_s))
            console.print(f"round {number + 1} of {rounds}", style="dim")
    return costs


def summed(costs: dict[tuple[str, str, bool], list[Cost]], sizes: dict[str, int]) -> list[dict[str, Any]]:
    """A row a case. The added time is the median of what each pair differs by, over the load's steps."""
    rows = []
    for (name, load, watched), pairs in costs.items():
        ratios = sorted(pair.ratio for pair in pairs)
        added = statistics.median(pair.with_s - pair.without_s for pair in pairs) / sizes[load]
        rows.append(
            {
                "programs": name,
                "load": load,
                "watched": watched,
                "ratio": round(statistics.median(ratios), 4),
                "ratio_least": round(ratios[0], 4),
                "ratio_most": round(ratios[-1], 4),
                "added_us_a_step": round(1e6 * added, 2),
                "step_us": round(1e6 * statistics.median(p.without_s for p in pairs) / sizes[load], 2),
                "pairs": len(pairs),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The table, for people and for the docs."""
    table = Table("programs", "load", "in a leaf", "CPU time over none (least to most)", "added us a step")
    for row in rows:
        spread = f"{row['ratio']:.3f} ({row['ratio_least']:.3f} to {row['ratio_most']:.3f})"
        added = f"{row['added_us_a_step']:.2f} of {row['step_us']:.1f}"
        table.add_row(row["programs"], row["load"], "watched" if row["watched"] else "no", spread, added)
    console.print(table)


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Pairs of runs a case.")
@click.option("--quick", is_flag=True, help="Two rounds of small loads: does it work?")
@click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), default=RESULT, show_default=True
)
def main(rounds: int, quick: bool, path: Path) -> None:
    """Measure what each BPF program costs loads of forks and of context switches."""
    console = Console(width=120)
    sizes = {"forks": 100, "switches": 2_000} if quick else {"forks": 400, "switches": 20_000}
    began_s = time.monotonic()
    try:
        costs = measure(2 if quick else rounds, sizes, console)
    except HostRefused as error:
        raise click.ClickException(str(error)) from error
    rows = summed(costs, sizes)
    show(rows, console)
    took_s = round(time.monotonic() - began_s)
    _found.keep(_found.headed("bpf", {"seconds": took_s, "rows": rows, "goals": {}}), path, console)


if __name__ == "__main__":
    main()
