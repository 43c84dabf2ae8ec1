"""What groups of cells are made of: closed and open runs of a case, at a scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentsched.workloads.grid.cases import PROFILE, Load
from agentsched.workloads.grid.cells import Cell, Done, Run
from agentsched.workloads.simulate import Options

BASELINE, OURS, YARDSTICK = "fcfs-lru", "agentsched", "clairvoyant"
PROGRAMS_A_PLACE = 5

Found = Mapping[Run, Done]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is run: at most so many seeds, closed loops of at least so many programs, and ``hours``
    simulated for the sustained rate."""

    seeds: int = 5
    programs: int = 100
    hours: float = 24.0
    bounds: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Cells that answer one question. ``about`` says which, and what was left out to keep it short.

    ``pressures``: of closed loops, measured beforehand. ``base``: the policy that ratios are taken to, in the
    unnamed row of the same place if there is one, else in the cell's own. ``cells`` is asked again after its
    runs were made, until it wants no more.
    """

    name: str
    about: str
    cases: tuple[str, ...]
    pressures: tuple[float, ...] = ()
    base: str = BASELINE
    cells: Callable[[Scale, Mapping[str, Load], Found], Iterator[Cell]]


def seeds_of(scale: Scale, most: int) -> range:
    return range(min(scale.seeds, most))


def closed(
    group: str,
    load: Load,
    scale: Scale,
    *,
    policies: Sequence[str],
    seeds: Iterable[int],
    pressures: Sequence[float],
    **changes: Any,
) -> Iterator[Cell]:
    """Closed loops of one engine or more. ``changes``: of the options, and ``row`` and ``constants``."""
    for seed in seeds:
        for pressure in pressures:
            engines = changes.get("engines", 1)
            at_once = engines * load.concurrency[str(pressure)]
            for policy in policies:
                yield closed_cell(group, load, scale, policy, seed, pressure, at_once, **changes)


def closed_cell(
    group: str, load: Load, scale: Scale, policy: str, seed: int, at: float, at_once: int, **changes: Any
) -> Cell:
    """``at_once`` programs on all engines together."""
    row, constants = changes.pop("row", ""), changes.pop("constants", ())
    usual = {
        "concurrency": at_once,
        "programs": max(scale.programs, PROGRAMS_A_PLACE * at_once),
        "bounds": scale.bounds and changes.get("engines", 1) == 1,
    }
    options = _options(load, seed, usual | changes)
    return _cell(group, load, at, row, Run(policy=policy, options=options, constants=constants))


def opened(group: str, load: Load, policy: str, seed: int, at: float, hours: float, **changes: Any) -> Cell:
    """Open arrivals on one engine, at ``at`` of the packing bound."""
    row = changes.pop("row", "")
    usual = {"rate": round(at * load.packing_tasks_per_hour, 2), "hours": hours}
    return _cell(group, load, at, row, Run(policy=policy, options=_options(load, seed, usual | changes)))


def _options(load: Load, seed: int, changes: dict[str, Any]) -> Options:
    case = load.case
    usual: dict[str, Any] = {
        "traces": (case.spec,),
        "kv_tokens": case.kv_tokens,
        "profile": PROFILE,
        "sharing": case.sharing,
        "seed": seed,
    }
    return Options(**usual | changes)


def _cell(group: str, load: Load, at: float, row: str, run: Run) -> Cell:
    packing = round(run.options.engines * load.packing_tasks_per_hour, 3)
    return Cell(group=group, case=load.case.name, at=at, row=row, run=run, packing=packing)
