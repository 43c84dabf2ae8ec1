"""The workloads of a comparison, and how hard each presses.

**Pressure** is the mean of the summed contexts of live programs when nothing waits for room, over KV
capacity. So the closed loop of a pressure is found by running the workload with room for everything
(``uncontended.py``); it depends on the workload and the engine, and on no policy. Open arrivals are given as
a share of the packing bound, the tasks an hour that fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from agentsched.workloads.uncontended import Serving, concurrency_for, yardstick
from agentsched.workloads.workload import load_workload

PROFILE = "llama-3.1-8b-h100"
PRESSURES = (0.5, 1.0, 1.5, 2.0, 4.0)


class CaseError(ValueError):
    """A case that is not known, or whose trace is not there."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A workload and the KV of one engine that serves it. ``spec`` is what ``traces.load`` takes."""

    name: str
    spec: str
    kv_tokens: int
    sharing: bool = True


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """For one engine: how many programs at once make each pressure, and how many tasks an hour fit."""

    case: Case
    concurrency: dict[str, int]
    packing_tasks_per_hour: float


FILES = {
    "tool-paced": Case(name="tool-paced", spec="agentcgroup-sessions.jsonl.gz#tool-paced", kv_tokens=450_000),
    "human-paced": Case(name="human-paced", spec="kv-cache-tester.jsonl.gz#human-paced", kv_tokens=450_000),
}
FILES["tool-paced 200k"] = msgspec.structs.replace(
    FILES["tool-paced"], name="tool-paced 200k", kv_tokens=200_000
)
FILES["tool-paced unshared"] = msgspec.structs.replace(
    FILES["tool-paced"], name="tool-paced unshared", sharing=False
)
GENERATED = {
    name: Case(name=name, spec=f"gen:{name}?seed=0", kv_tokens=kv_tokens)
    for name, kv_tokens in (
        ("saga-swe", 450_000),
        ("saga-web", 450_000),
        ("saga-tenants", 450_000),
        ("continuum-swe", 450_000),
        ("text2sql", 100_000),
    )
}
CASE_NAMES = (*FILES, *GENERATED)


def find_cases(names: Sequence[str], folder: Path | None) -> tuple[list[Case], list[str]]:
    """The cases, in order, and the names of those whose trace is not in ``folder`` or below it.

    Raises ``CaseError`` for a name that is no case.
    """
    found, missing = [], []
    for name in names:
        if name in GENERATED:
            found.append(GENERATED[name])
        elif name in FILES:
            file, _, part = FILES[name].spec.partition("#")
            path = next(iter(sorted(folder.rglob(file))), None) if folder is not None else None
            if path is None:
                missing.append(name)
            else:
                found.append(msgspec.structs.replace(FILES[name], spec=f"{path}#{part}"))
        else:
            raise CaseError(f"no case {name!r}; there are: {', '.join(CASE_NAMES)}")
    return found, missing


def measure_load(case: Case, pressures: Sequence[float]) -> Load:
    """Run the workload without contention until each pressure's closed loop is known; takes seconds."""
    workload = load_workload((case.spec,), kv_tokens=case.kv_tokens, sharing=case.sharing)
    serving = Serving(PROFILE)
    return Load(
        case=case,
        concurrency={
            str(pressure): concurrency_for(workload, serving, pressure * case.kv_tokens)
            for pressure in pressures
        },
        packing_tasks_per_hour=yardstick(workload, serving, case.kv_tokens).tasks_per_hour,
    )
