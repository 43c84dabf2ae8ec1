"""Closed loops: pressures, sharing off, packing, mechanisms off, and what goes wrong on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentsched.core import ABLATION_NAMES, POLICY_NAMES
from agentsched.workloads.grid.cases import PRESSURES, Load
from agentsched.workloads.grid.cells import Cell
from agentsched.workloads.grid.groups.runs import (
    BASELINE,
    OURS,
    YARDSTICK,
    Found,
    Group,
    Scale,
    closed,
    closed_cell,
    seeds_of,
)

DEV = ("tool-paced", "saga-swe", "continuum-swe")
MORE = ("saga-web", "text2sql", "human-paced")
AT_ONCE = (24, 48)
PRESSED = 2.0
UNSHARED_PRESSURES, PACKED_PRESSURES = (0.5, 1.0, 2.0, 4.0), (1.5, 2.0, 4.0)
DISTURBED: dict[str, dict[str, float]] = {
    "": {},
    "200 ms of control delay": {"control_delay_ms": 200.0},
    "5 % of orders lost": {"lost_orders": 0.05},
}


def _pressures(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for name, load in loads.items():
        seeds, pressures = (5, PRESSURES) if name in DEV else (2, (0.5, PRESSED))
        yield from closed(
            "closed", load, scale, policies=POLICY_NAMES, seeds=seeds_of(scale, seeds), pressures=pressures
        )


def _at_once(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        for seed in seeds_of(scale, 5):
            for at_once in AT_ONCE:
                for policy in POLICY_NAMES:
                    yield closed_cell("at-once", load, scale, policy, seed, at_once, at_once)


def _unshared(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        yield from closed(
            "unshared",
            load,
            scale,
            policies=POLICY_NAMES,
            seeds=seeds_of(scale, 2),
            pressures=UNSHARED_PRESSURES,
        )


def _packing(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        for policies, seeds in (((OURS, YARDSTICK), 3), ((BASELINE, "thunderagent"), 1)):
            yield from closed(
                "packing",
                load,
                scale,
                policies=policies,
                seeds=seeds_of(scale, seeds),
                pressures=PACKED_PRESSURES,
                programs=3 * scale.programs,
            )


def _ablation(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        yield from closed(
            "ablation",
            load,
            scale,
            policies=(OURS, *ABLATION_NAMES, BASELINE),
            seeds=seeds_of(scale, 5),
            pressures=(PRESSED,),
        )


def _disturbed(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        for row, changes in DISTURBED.items():
            yield from closed(
                "disturbed",
                load,
                scale,
                policies=(OURS,),
                seeds=seeds_of(scale, 5),
                pressures=(PRESSED,),
                row=row,
                **changes,
            )


GROUPS = (
    Group(
        name="closed",
        about="Closed loops by pressure. Five seeds for tool-paced, saga-swe and continuum-swe; two seeds "
        "and pressures 0.5 and 2 for the others.",
        cases=(*DEV, *MORE),
        pressures=PRESSURES,
        cells=_pressures,
    ),
    Group(
        name="at-once",
        about="The same with 24 and 48 programs at once.",
        cases=("tool-paced",),
        cells=_at_once,
    ),
    Group(
        name="unshared",
        about="Prefix sharing off, in the workload whose programs share prefixes. Two seeds.",
        cases=("tool-paced unshared",),
        pressures=UNSHARED_PRESSURES,
        cells=_unshared,
    ),
    Group(
        name="packing",
        about="Throughput against the packing bound, and against ours knowing the future (clairvoyant). "
        "Three times the programs, since the ramp of a short run weighs; three seeds, of fcfs-lru "
        "and thunderagent one.",
        cases=("tool-paced", "tool-paced 200k", "saga-swe", "continuum-swe"),
        pressures=PACKED_PRESSURES,
        cells=_packing,
    ),
    Group(
        name="ablation",
        about="Each mechanism of ours switched off, at pressure 2. Ratios are to agentsched as it is.",
        cases=DEV,
        base=OURS,
        pressures=(PRESSED,),
        cells=_ablation,
    ),
    Group(
        name="disturbed",
        about="Orders and reports held up by 200 ms, and 5 % of orders lost, at pressure 2. Ratios are to "
        "the undisturbed run.",
        cases=DEV,
        base=OURS,
        pressures=(PRESSED,),
        cells=_disturbed,
    ),
)
