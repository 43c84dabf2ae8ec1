"""The runs that were made, as tables ask for them, and the small file that results are kept in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import NamedTuple

import msgspec

from agentsched.workloads.figures import FIGURES, Figure
from agentsched.workloads.grid.cells import Cell, Done, Run
from agentsched.workloads.grid.ratios import Ratio, ratio
from agentsched.workloads.summary import Host, Summary


class Place(NamedTuple):
    """All policies and seeds that are compared with each other."""

    group: str
    case: str
    at: float
    row: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """Cells with what their runs gave. Of a run that was stopped there is no summary."""

    by_place: dict[Place, dict[str, dict[int, tuple[Cell, Done]]]]

    @classmethod
    def of(cls, cells: Sequence[Cell], found: Mapping[Run, Done]) -> Made:
        by_place: dict[Place, dict[str, dict[int, tuple[Cell, Done]]]] = {}
        for cell in cells:
            place = by_place.setdefault(Place(cell.group, cell.case, cell.at, cell.row), {})
            place.setdefault(cell.run.policy, {})[cell.run.options.seed] = cell, found[cell.run]
        return cls(by_place)

    def places(self, group: str, case: str | None = None) -> list[Place]:
        return [p for p in self.by_place if p.group == group and case in (None, p.case)]

    def cases(self, group: str) -> list[str]:
        return list(dict.fromkeys(place.case for place in self.places(group)))

    def policies(self, place: Place) -> list[str]:
        return list(self.by_place.get(place, {}))

    def summaries(self, place: Place, policy: str) -> dict[int, Summary]:
        """By seed."""
        runs = self.by_place.get(place, {}).get(policy, {})
        return {seed: done.summary for seed, (_, done) in runs.items() if done.summary is not None}

    def stopped(self, place: Place, policy: str) -> list[str]:
        """Why runs have no summary."""
        runs = self.by_place.get(place, {}).get(policy, {})
        return [done.stopped for _, done in runs.values() if done.summary is None]

    def values(self, figure: Figure, place: Place, policy: str) -> dict[int, float]:
        """By seed, where the measure was taken."""
        summaries = self.summaries(place, policy)
        return {seed: float(v) for seed, s in summaries.items() if (v := figure.of(s)) is not None}

    def ratio(self, figure: Figure, place: Place, policy: str, base: str) -> Ratio | None:
        return ratio(self.values(figure, place, policy), self.values(figure, place, base), figure.floor)


class Measured(msgspec.Struct, frozen=True, array_like=True):
    """A measure's mean over seeds, and its ratio where the baseline has it too."""

    mean: float
    ratio: Ratio | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """All seeds of one policy in one place. ``amount``: programs at once, or arrivals an hour. ``course``:
    useful tokens a second in each window of an open run, mean over seeds. ``stopped``: why seeds lack."""

    group: str
    case: str
    at: float
    row: str
    policy: str
    amount: float
    seeds: int
    packing_tasks_per_hour: float
    measures: dict[str, Measured]
    course: list[float] | None = None
    stopped: list[str] | None = None


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What was set out to be reached, and what was. ``reached`` is None where nothing was measured."""

    what: str
    wanted: str
    found: str
    reached: bool | None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A finished comparison, with what it ran on. ``about``: of each group, what it shows."""

    version: str
    command: str
    host: Host
    profile: str
    about: dict[str, str]
    goals: list[Goal]
    points: list[Point]

    def of(self, group: str, case: str | None = None) -> list[Point]:
        return [point for point in self.points if point.group == group and case in (None, point.case)]


def lines_of(results: Results) -> bytes:
    """As JSON with a line for each point, so that changes can be read as such."""
    head = msgspec.json.encode(msgspec.structs.replace(results, points=[]))
    points = b",\n".join(map(msgspec.json.encode, results.points))
    assert head.endswith(b"[]}"), "points come last"
    return head[:-2] + b"\n" + points + b"\n]}\n"


def points_of(made: Made, bases: Mapping[str, str]) -> list[Point]:
    """One point for all seeds of a policy in a place. ``bases``: by group, the policy that ratios are to."""
    return [
        _point(made, place, policy, _base(made, place, bases[place.group]))
        for place in made.by_place
        for policy in made.policies(place)
    ]


def _base(made: Made, place: Place, policy: str) -> tuple[Place, str]:
    """Rows are variations of the unnamed row; where there is none, each is its own base."""
    unnamed = place._replace(row="")
    return (unnamed if unnamed in made.by_place else place), policy


def _point(made: Made, place: Place, policy: str, base: tuple[Place, str]) -> Point:
    cell, _ = next(iter(made.by_place[place][policy].values()))
    measures = {
        figure.name: _measured(
            figure, made.values(figure, place, policy), made.values(figure, *base), base == (place, policy)
        )
        for figure in FIGURES
    }
    courses = [s.useful_by_window for s in made.summaries(place, policy).values() if s.useful_by_window]
    return Point(
        group=place.group,
        case=place.case,
        at=place.at,
        row=place.row,
        policy=policy,
        amount=cell.amount,
        seeds=len(made.summaries(place, policy)),
        packing_tasks_per_hour=_short(cell.packing),
        measures={name: value for name, value in measures.items() if value is not None},
        course=[_short(fmean(each)) for each in zip_longest(*courses, fillvalue=0.0)] or None,
        stopped=made.stopped(place, policy) or None,
    )


def _measured(
    figure: Figure, ours: Mapping[int, float], base: Mapping[int, float], same: bool
) -> Measured | None:
    if not ours:
        return None
    found = None if same else ratio(ours, base, figure.floor)
    return Measured(_short(fmean(ours.values())), None if found is None else _shortened(found))


def _shortened(ratio: Ratio) -> Ratio:
    if ratio.low is None or ratio.high is None:
        return Ratio(_short(ratio.mean))
    return Ratio(_short(ratio.mean), _short(ratio.low), _short(ratio.high))


def _short(value: float) -> float:
    """Four digits: more would say more than was measured, and make the file large."""
    return float(f"{value:.4g}")
