"""Policies against each other: policies x workloads x pressures x seeds, and open arrivals to the collapse.

Every run is a simulation of one engine with the same programs for each policy. Runs are spread over
processes, and each finished one is a line of OUT/policies.jsonl: started again, the benchmark goes on
where it stopped. After a change of the code, begin with an empty OUT.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.markup import escape

from agentsched import __version__
from agentsched.core import ABLATION_NAMES, POLICY_NAMES
from agentsched.workloads.grid.cells import (
    CASE_NAMES,
    LOADS,
    PRESSURES,
    PROFILE,
    CaseError,
    Load,
    closed_cells,
    find_cases,
    open_cells,
)
from agentsched.workloads.grid.plots import write_plots
from agentsched.workloads.grid.ratios import BASELINE, Results, lines_of, points_of
from agentsched.workloads.grid.running import measure_loads, run_cells
from agentsched.workloads.grid.tables import full_table, put_into, short_table
from agentsched.workloads.simulate import OptionError, check_policies
from agentsched.workloads.summary import describe_host

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parents[1] / "results"

OPEN_CASES = ("tool-paced", "saga-swe")
"""Open arrivals are played for the first of these that there is: the plot of the collapse."""
OPEN_POLICIES = (BASELINE, "agentsched")
MOST_OPEN_SEEDS = 3
QUICK_CASE, QUICK_PRESSURES, QUICK_LOADS, QUICK_SEEDS, QUICK_PROGRAMS = (
    "continuum-swe",
    (1.0, 2.0),
    (1.5,),
    2,
    60,
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run, and where it goes. ``results`` gets the table, the plots and the aggregated figures."""

    cases: tuple[str, ...]
    policies: tuple[str, ...]
    pressures: tuple[float, ...]
    loads: tuple[float, ...]
    open_hours: float
    seeds: int
    programs: int
    bounds: bool
    jobs: int
    traces: Path | None
    out: Path
    results: Path


@click.command()
@click.option("--quick", is_flag=True, help="One workload, two pressures, two seeds: does it all work?")
@click.option(
    "--traces",
    envvar="AGENTSCHED_TRACES",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of recorded traces, searched with what is below it.  [env AGENTSCHED_TRACES]",
)
@click.option("--cases", default=",".join(CASE_NAMES), show_default=True, help="Workloads.")
@click.option("--policies", default=",".join(POLICY_NAMES), show_default=True, help="Policies.")
@click.option("--pressures", default=",".join(f"{p:g}" for p in PRESSURES), show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Runs of each cell.")
@click.option("--programs", type=click.IntRange(1), default=150, show_default=True, help="At least, a run.")
@click.option("--open/--no-open", "opened", default=True, show_default=True, help="Open arrivals too.")
@click.option("--bounds/--no-bounds", default=True, show_default=True, help="Bound on recomputation too.")
@click.option("--ablate", is_flag=True, help="Ours also with each mechanism switched off.")
@click.option("--jobs", type=click.IntRange(1), help="Processes.  [default: one a core]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), help="[default: the package's, and the README]")
def main(
    quick: bool,
    traces: Path | None,
    cases: str,
    policies: str,
    pressures: str,
    seeds: int,
    programs: int,
    opened: bool,
    bounds: bool,
    ablate: bool,
    jobs: int | None,
    out: Path,
    results: Path | None,
) -> None:
    """Compare policies on recorded and generated agents, in simulation."""
    if quick:
        out = out / "quick"
    plan = Plan(
        cases=(QUICK_CASE,) if quick else tuple(_words(cases)),
        policies=OPEN_POLICIES if quick else (*_words(policies), *(ABLATION_NAMES if ablate else ())),
        pressures=QUICK_PRESSURES if quick else tuple(_numbers("--pressures", pressures)),
        loads=(QUICK_LOADS if quick else LOADS) if opened else (),
        open_hours=1.0 if quick else 3.0,
        seeds=QUICK_SEEDS if quick else seeds,
        programs=QUICK_PROGRAMS if quick else programs,
        bounds=bounds,
        jobs=jobs or len(os.sched_getaffinity(0)),
        traces=traces,
        out=out,
        results=out if quick and results is None else results or RESULTS,
    )
    console = Console(stderr=True)
    try:
        _compare(plan, console)
    except (CaseError, OptionError) as error:
        raise click.UsageError(str(error)) from None
    except KeyboardInterrupt:
        console.print(f"Interrupted; the same command goes on where it stopped ({plan.out}).", soft_wrap=True)
        sys.exit(130)


def _compare(plan: Plan, console: Console) -> None:
    check_policies(plan.policies)
    cases, missing = find_cases(plan.cases, plan.traces)
    if missing:
        console.print(
            f"Left out: {', '.join(missing)}. Their recorded traces are not here; name their folder with "
            "--traces or AGENTSCHED_TRACES.",
            soft_wrap=True,
        )
    if not cases:
        raise CaseError("no workload is left")
    console.print(f"How many programs make each pressure ({len(cases)} workloads) ...", highlight=False)
    loads = measure_loads(cases, plan.pressures, plan.out / "loads.json", plan.jobs)
    cells = [
        cell
        for load in loads
        for cell in closed_cells(load, plan.policies, plan.pressures, plan.seeds, plan.programs, plan.bounds)
    ]
    for load in _open(loads):
        policies = [policy for policy in plan.policies if policy in OPEN_POLICIES]
        seeds = min(plan.seeds, MOST_OPEN_SEEDS)
        cells += open_cells(load, policies, plan.loads, seeds, plan.open_hours)
    began_s = time.monotonic()
    done = run_cells(cells, loads, plan.out / "policies.jsonl", plan.jobs, _teller(console, began_s))
    results = Results(
        version=__version__,
        command=_command(),
        host=describe_host(),
        profile=PROFILE,
        points=points_of(done),
    )
    _write(results, plan, console)


def _open(loads: list[Load]) -> list[Load]:
    """The load of the case that open arrivals are played for."""
    by_name = {load.case.name: load for load in loads}
    found = next((by_name[name] for name in OPEN_CASES if name in by_name), loads[0])
    return [found]


def _write(results: Results, plan: Plan, console: Console) -> None:
    plan.results.mkdir(parents=True, exist_ok=True)
    written = [plan.results / "policies.json", plan.results / "policies.md"]
    written[0].write_bytes(lines_of(results))
    written[1].write_text(full_table(results))
    written += write_plots(results, plan.results)
    table, readme = short_table(results), ROOT / "README.md"
    if plan.results == RESULTS and readme.is_file():
        readme.write_text(put_into(readme.read_text(), table))
        written.append(readme)
    print(table)
    console.print("written: " + escape(", ".join(str(path) for path in written)), soft_wrap=True)


def _teller(console: Console, began_s: float) -> Callable[[int, int], None]:
    """A line for each hundredth, so that a log of it can be read too."""
    shown = -1

    def tell(done: int, total: int) -> None:
        nonlocal shown
        if done == total or done * 100 // total != shown:
            shown = done * 100 // total
            console.print(f"{done:,} of {total:,} runs, {time.monotonic() - began_s:,.0f} s", highlight=False)

    return tell


def _command() -> str:
    return shlex.join(["scripts/bench", "policies", *sys.argv[1:]])


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(word) for word in _words(text)]
    except ValueError:
        raise click.UsageError(f"{option} is numbers separated by commas, not {text!r}") from None
    if not numbers or min(numbers) <= 0:
        raise click.UsageError(f"{option} must be positive numbers, got {text!r}")
    return numbers


if __name__ == "__main__":
    main()
