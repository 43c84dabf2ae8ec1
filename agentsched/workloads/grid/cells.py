"""The cells of a comparison: what each one runs, how hard it presses, and running it.

**Pressure** is the mean of the summed contexts of live programs when nothing waits for room, over KV
capacity. So the closed loop of a pressure is found by running the workload with room for everything
(``uncontended.py``); it depends on the workload and the engine, and on no policy. Open arrivals are given as
a share of the packing bound, the tasks an hour that fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from agentsched.workloads.simulate import Options, simulate
from agentsched.workloads.summary import Summary
from agentsched.workloads.uncontended import Serving, concurrency_for, yardstick
from agentsched.workloads.workload import load_workload

PROFILE = "llama-3.1-8b-h100"
PRESSURES = (0.5, 1.0, 1.5, 2.0, 4.0)
LOADS = (0.5, 0.7, 0.85, 0.95, 1.05, 1.25, 1.5, 2.0)
PROGRAMS_A_PLACE = 5
DEADLINE_FACTOR = 4.0
"""Every program is to end within so many times its time alone."""


class CaseError(ValueError):
    """A case that is not known, or whose trace is not there."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A workload and the KV of the one engine that serves it. ``spec`` is what ``traces.load`` takes."""

    name: str
    spec: str
    kv_tokens: int


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How many programs at once make each pressure of a case, and how many tasks an hour fit."""

    case: Case
    concurrency: dict[str, int]
    packing_tasks_per_hour: float


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``at``: the pressure of a closed loop, or the load of open arrivals; ``amount``: what that
    makes, programs at once or arrivals an hour. ``hours``: how long they arrive."""

    policy: str
    case: Case
    seed: int
    at: float
    open_loop: bool = False
    amount: float
    programs: int = 0
    hours: float = 0.0
    bounds: bool = False


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A cell that was run, as a line of the file of cells."""

    cell: Cell
    summary: Summary


FILES = {
    "tool-paced": ("agentcgroup-sessions.jsonl.gz", "tool-paced", 450_000),
    "human-paced": ("kv-cache-tester.jsonl.gz", "human-paced", 450_000),
}
GENERATED = {
    "saga-swe": ("gen:saga-swe?seed=0", 450_000),
    "saga-web": ("gen:saga-web?seed=0", 450_000),
    "continuum-swe": ("gen:continuum-swe?seed=0", 450_000),
    "text2sql": ("gen:text2sql?seed=0", 100_000),
}
CASE_NAMES = (*FILES, *GENERATED)


def find_cases(names: Sequence[str], folder: Path | None) -> tuple[list[Case], list[str]]:
    """The cases, in order, and the names of those whose trace is not in ``folder`` or below it.

    Raises ``CaseError`` for a name that is no case.
    """
    found, missing = [], []
    for name in names:
        if name in GENERATED:
            spec, kv_tokens = GENERATED[name]
            found.append(Case(name=name, spec=spec, kv_tokens=kv_tokens))
        elif name in FILES:
            file, part, kv_tokens = FILES[name]
            path = next(iter(sorted(folder.rglob(file))), None) if folder is not None else None
            if path is None:
                missing.append(name)
            else:
                found.append(Case(name=name, spec=f"{path}#{part}", kv_tokens=kv_tokens))
        else:
            raise CaseError(f"no case {name!r}; there are: {', '.join(CASE_NAMES)}")
    return found, missing


def measure_load(case: Case, pressures: Sequence[float]) -> Load:
    """Run the workload without contention until each pressure's closed loop is known; takes seconds."""
    workload = load_workload((case.spec,), kv_tokens=case.kv_tokens)
    serving = Serving(PROFILE)
    return Load(
        case=case,
        concurrency={
            str(pressure): concurrency_for(workload, serving, pressure * case.kv_tokens)
            for pressure in pressures
        },
        packing_tasks_per_hour=yardstick(workload, serving, case.kv_tokens).tasks_per_hour,
    )


def closed_cells(
    load: Load, policies: Sequence[str], pressures: Sequence[float], seeds: int, programs: int, bounds: bool
) -> Iterator[Cell]:
    """``bounds``: compare with the bound on recomputation, for the first seed."""
    for seed in range(seeds):
        for pressure in pressures:
            concurrency = load.concurrency[str(pressure)]
            for policy in policies:
                yield Cell(
                    policy=policy,
                    case=load.case,
                    seed=seed,
                    at=pressure,
                    amount=concurrency,
                    programs=max(programs, PROGRAMS_A_PLACE * concurrency),
                    bounds=bounds and seed == 0,
                )


def open_cells(
    load: Load, policies: Sequence[str], loads: Sequence[float], seeds: int, hours: float
) -> Iterator[Cell]:
    """Poisson arrivals at shares of the packing bound."""
    for seed in range(seeds):
        for at in loads:
            rate = round(at * load.packing_tasks_per_hour, 2)
            for policy in policies:
                yield Cell(
                    policy=policy, case=load.case, seed=seed, at=at, open_loop=True, amount=rate, hours=hours
                )


def run_cell(cell: Cell, packing: float) -> Done:
    """Run it. ``packing``: the tasks an hour that fit."""
    if cell.open_loop:
        options = Options(
            traces=(cell.case.spec,),
            kv_tokens=cell.case.kv_tokens,
            rate=cell.amount,
            hours=cell.hours,
            seed=cell.seed,
            deadline_factor=DEADLINE_FACTOR,
        )
    else:
        options = Options(
            traces=(cell.case.spec,),
            kv_tokens=cell.case.kv_tokens,
            concurrency=int(cell.amount),
            programs=cell.programs,
            seed=cell.seed,
            deadline_factor=DEADLINE_FACTOR,
            bounds=cell.bounds,
        )
    return Done(cell=cell, summary=simulate(options, cell.policy, packing=packing))
