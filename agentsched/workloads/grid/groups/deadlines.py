"""Deadlines that the baseline meets for most programs, and who meets the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from agentsched.workloads.grid.cases import Load
from agentsched.workloads.grid.cells import Cell
from agentsched.workloads.grid.groups.runs import (
    BASELINE,
    OURS,
    YARDSTICK,
    Found,
    Group,
    Scale,
    opened,
    seeds_of,
)

LOADS = (0.4, 0.55, 0.7, 0.85)
HOURS = 3.0
MET_BY_BASELINE = 7
"""Tenths of its programs."""


def _slo(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        for at in LOADS:
            hours = min(HOURS, scale.hours)
            free = [
                opened("slo", load, BASELINE, seed, at, hours, row="no deadlines")
                for seed in seeds_of(scale, 2)
            ]
            yield from free
            factor = _factor(free, found)
            if factor is None:
                continue
            row = f"deadline {factor:g} x alone"
            for seed in seeds_of(scale, 2):
                for policy in (BASELINE, "saga", "thunderagent", OURS, YARDSTICK):
                    yield opened("slo", load, policy, seed, at, hours, row=row, deadline_factor=factor)


def _factor(cells: Sequence[Cell], found: Found) -> float | None:
    """The slowdown that so many of the baseline's programs stay within, as it heeds no deadline."""
    if any(cell.run not in found for cell in cells):
        return None
    deciles = [s.slowdown_deciles for cell in cells if (s := found[cell.run].summary) is not None]
    within = [each[MET_BY_BASELINE - 1] for each in deciles if each is not None]
    return round(fmean(within), 2) if within else None


GROUPS = (
    Group(
        name="slo",
        about="SAGA's tenants, open arrivals at shares of the packing bound, deadlines of so many times a "
        "program's time alone that fcfs-lru meets 70 % (its slowdown's seventh decile). Two seeds.",
        cases=("saga-tenants",),
        cells=_slo,
    ),
)
