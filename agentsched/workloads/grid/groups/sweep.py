"""Constants set by hand for each workload, against finding them online."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentsched.workloads.grid.cases import Load
from agentsched.workloads.grid.cells import Cell
from agentsched.workloads.grid.groups.pressing import DEV, PRESSED
from agentsched.workloads.grid.groups.runs import OURS, Found, Group, Scale, closed, seeds_of

TRIED = {
    "overcommit": (1.0, 1.2, 1.4, 1.6, 1.8, 2.0),
    "relief share": (0.055, 0.22),
    "price, times": (0.5, 2.0),
}


def _sweep(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    settings = [("", ())] + [
        (f"{name} {value:g}", ((name, value),)) for name, values in TRIED.items() for value in values
    ]
    for load in loads.values():
        for row, constants in settings:
            yield from closed(
                "sweep",
                load,
                scale,
                policies=(OURS,),
                seeds=seeds_of(scale, 3),
                pressures=(PRESSED,),
                row=row,
                constants=constants,
            )


GROUPS = (
    Group(
        name="sweep",
        about="One constant at a time set by hand, at pressure 2, three seeds. Ratios are to the online "
        "defaults. The best of ten by the same seeds is too good by what chance gives it.",
        cases=(*DEV, "tool-paced 200k"),
        base=OURS,
        pressures=(PRESSED,),
        cells=_sweep,
    ),
)
