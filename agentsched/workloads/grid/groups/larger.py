"""A tier of host memory, and many engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentsched.workloads.grid.cases import Load
from agentsched.workloads.grid.cells import Cell
from agentsched.workloads.grid.groups.runs import (
    BASELINE,
    OURS,
    Found,
    Group,
    Scale,
    closed,
    closed_cell,
    seeds_of,
)

HUMANS_AT_ONCE = 16
HOST_TIMES = 4
NO_HOST, WITH_HOST = "no host tier", "host tier, 4 x the device"
ENGINES, MANY_ENGINES, MANY_PROGRAMS = 8, 64, 2_000
PRESSED = 2.0
PROGRAMS_A_PLACE = 3


def _host_tier(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    policies = (BASELINE, "continuum", "thunderagent", OURS)
    for load in loads.values():
        for seed in seeds_of(scale, 3):
            for row, tokens in ((NO_HOST, 0), (WITH_HOST, HOST_TIMES * load.case.kv_tokens)):
                for policy in policies:
                    at = HUMANS_AT_ONCE
                    yield closed_cell(
                        "host-tier", load, scale, policy, seed, at, at, row=row, host_tokens=tokens
                    )


def _engines(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        at_once = ENGINES * load.concurrency[str(PRESSED)]
        yield from closed(
            "engines",
            load,
            scale,
            policies=(BASELINE, "saga", "thunderagent", OURS),
            seeds=seeds_of(scale, 2),
            pressures=(PRESSED,),
            row=f"{ENGINES} engines",
            engines=ENGINES,
            programs=max(scale.programs, PROGRAMS_A_PLACE * at_once),
        )


def _many_engines(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        yield from closed(
            "many-engines",
            load,
            scale,
            policies=(BASELINE, OURS),
            seeds=seeds_of(scale, 1),
            pressures=(PRESSED,),
            row=f"{MANY_ENGINES} engines",
            engines=MANY_ENGINES,
            programs=MANY_PROGRAMS,
        )


GROUPS = (
    Group(
        name="host-tier",
        about="Human-paced sessions, 16 at once, without a host tier and with one of four times the device "
        "at the speed of PCIe 4. Three seeds.",
        cases=("human-paced",),
        cells=_host_tier,
    ),
    Group(
        name="engines",
        about="Eight engines at pressure 2: three programs a place, two seeds.",
        cases=("saga-swe", "saga-web"),
        pressures=(PRESSED,),
        cells=_engines,
    ),
    Group(
        name="many-engines",
        about="64 engines and 2,000 programs, at pressure 2: one seed. Two programs a place: much of "
        "the run is ramp and drain.",
        cases=("saga-swe", "saga-web"),
        pressures=(PRESSED,),
        cells=_many_engines,
    ),
)
