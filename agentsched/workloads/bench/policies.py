"""Policies against each other: groups of cells, each of which answers one question, and one table of all.

Every run is a simulation with the same programs for each policy. Runs are spread over processes, and each
finished one is a line of OUT/policies.jsonl: started again, the benchmark goes on where it stopped.
After a change of the code, begin with an empty OUT.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.markup import escape

from agentsched import __version__
from agentsched.workloads.grid.cases import CASE_NAMES, PROFILE, CaseError, Load, find_cases
from agentsched.workloads.grid.cells import Cell, Done, Run
from agentsched.workloads.grid.goals import goals_of
from agentsched.workloads.grid.groups import GROUPS
from agentsched.workloads.grid.groups.runs import Group, Scale
from agentsched.workloads.grid.plots import write_plots
from agentsched.workloads.grid.results import Made, Results, lines_of, points_of
from agentsched.workloads.grid.running import measure_loads, run_cells
from agentsched.workloads.grid.tables import full_table, put_into, short_table
from agentsched.workloads.summary import describe_host

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parents[1] / "results"

QUICK_CASES = ("continuum-swe",)
QUICK_GROUPS = ("closed", "ablation", "disturbed", "sweep")
QUICK = Scale(seeds=1, programs=30, hours=0.5)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run, and where it goes. ``results`` gets the table, the plots and the aggregated figures."""

    groups: tuple[Group, ...]
    cases: tuple[str, ...]
    scale: Scale
    cell_s: float
    jobs: int
    traces: Path | None
    out: Path
    results: Path


@click.command()
@click.option("--quick", is_flag=True, help="Some groups, one workload, one seed: does it all work?")
@click.option(
    "--traces",
    envvar="AGENTSCHED_TRACES",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of recorded traces, searched with what is below it.  [env AGENTSCHED_TRACES]",
)
@click.option("--groups", default=",".join(GROUPS), show_default=True, help="Groups of cells.")
@click.option("--cases", default=",".join(CASE_NAMES), show_default=True, help="Only these workloads.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="At most, a cell.")
@click.option("--programs", type=click.IntRange(1), default=100, show_default=True, help="At least, a run.")
@click.option("--hours", type=click.FloatRange(0.1), default=24.0, show_default=True, help="Of arrivals.")
@click.option("--bounds/--no-bounds", default=True, show_default=True, help="Bound on recomputation too.")
@click.option(
    "--cell-seconds",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="Of a core, for a run at most.",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes.  [default: one a core]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), help="[default: the package's, and the README]")
def main(
    quick: bool,
    traces: Path | None,
    groups: str,
    cases: str,
    seeds: int,
    programs: int,
    hours: float,
    bounds: bool,
    cell_seconds: float,
    jobs: int | None,
    out: Path,
    results: Path | None,
) -> None:
    """Compare policies on recorded and generated agents, in simulation."""
    scale = Scale(seeds=seeds, programs=programs, hours=hours, bounds=bounds)
    if quick:
        out = out / "quick"
    plan = Plan(
        groups=_groups(QUICK_GROUPS if quick else _words(groups)),
        cases=QUICK_CASES if quick else _words(cases),
        scale=replace(QUICK, bounds=bounds) if quick else scale,
        cell_s=cell_seconds,
        jobs=jobs or len(os.sched_getaffinity(0)),
        traces=traces,
        out=out,
        results=out if quick and results is None else results or RESULTS,
    )
    console = Console(stderr=True)
    try:
        _compare(plan, console)
    except CaseError as error:
        raise click.UsageError(str(error)) from None
    except KeyboardInterrupt:
        console.print(f"Interrupted; the same command goes on where it stopped ({plan.out}).", soft_wrap=True)
        sys.exit(130)


def _compare(plan: Plan, console: Console) -> None:
    wanted: dict[str, dict[float, None]] = {}
    for group in plan.groups:
        for case in filter(plan.cases.__contains__, group.cases):
            wanted.setdefault(case, {}).update(dict.fromkeys(group.pressures))
    find_cases(plan.cases, None)
    cases, missing = find_cases(tuple(wanted), plan.traces)
    if missing:
        console.print(
            f"Left out: {', '.join(missing)}. Their recorded traces are not here; name their folder with "
            "--traces or AGENTSCHED_TRACES.",
            soft_wrap=True,
        )
    if not cases:
        raise CaseError("no workload is left")
    console.print(f"How many programs make each pressure ({len(cases)} workloads) ...", highlight=False)
    pressures = {case: wanted[case.name] for case in cases}
    measured = measure_loads(pressures, plan.out / "loads.json", plan.jobs)
    loads = {load.case.name: load for load in measured}

    def cells(known: Mapping[Run, Done]) -> list[Cell]:
        return [cell for group in plan.groups for cell in group.cells(plan.scale, _own(group, loads), known)]

    tell = _teller(console, time.monotonic())
    made, found = run_cells(cells, plan.out / "policies.jsonl", plan.jobs, plan.cell_s, tell)
    _write(_results(plan, Made.of(made, found)), plan, console)


def _own(group: Group, loads: Mapping[str, Load]) -> dict[str, Load]:
    return {name: loads[name] for name in group.cases if name in loads}


def _results(plan: Plan, made: Made) -> Results:
    return Results(
        version=__version__,
        command=_command(),
        host=describe_host(),
        profile=PROFILE,
        about={group.name: group.about for group in plan.groups if made.places(group.name)},
        goals=goals_of(made),
        points=points_of(made, {group.name: group.base for group in plan.groups}),
    )


def _groups(names: tuple[str, ...]) -> tuple[Group, ...]:
    unknown = [name for name in names if name not in GROUPS]
    if unknown or not names:
        raise click.UsageError(f"no group {', '.join(unknown)!r}; there are: {', '.join(GROUPS)}")
    return tuple(GROUPS[name] for name in names)


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


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


if __name__ == "__main__":
    main()
