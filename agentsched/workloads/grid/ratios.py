"""Ratios of each policy to the baseline, paired by seed, and the small file that results are kept in.

Runs of one seed play the same programs in the same order. So the ratio is taken within each seed, its
logarithm averaged over seeds, and the 95 % interval is Student's t on those logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import msgspec
from scipy import stats

from agentsched.workloads.figures import FIGURES, Figure
from agentsched.workloads.grid.cells import Done
from agentsched.workloads.summary import Host, Summary

BASELINE = "fcfs-lru"
CONFIDENCE = 0.95


class Ratio(msgspec.Struct, frozen=True, array_like=True):
    """To the baseline. ``low`` and ``high`` bound it with 95 % confidence; None with one seed only."""

    mean: float
    low: float | None = None
    high: float | None = None


class Measured(msgspec.Struct, frozen=True, array_like=True):
    """A measure's mean over seeds, and its ratio where the baseline has it too."""

    mean: float
    ratio: Ratio | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """All seeds of one cell. ``amount``: programs at once, or arrivals an hour."""

    case: str
    policy: str
    open_loop: bool
    at: float
    amount: float
    seeds: int
    packing_tasks_per_hour: float
    measures: dict[str, Measured]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A finished comparison, with what it ran on."""

    version: str
    command: str
    host: Host
    profile: str
    points: list[Point]

    def of(self, case: str, *, open_loop: bool = False) -> list[Point]:
        return [point for point in self.points if point.case == case and point.open_loop == open_loop]


def lines_of(results: Results) -> bytes:
    """As JSON with a line for each point, so that changes can be read as such."""
    head = msgspec.json.encode(msgspec.structs.replace(results, points=[]))
    points = b",\n".join(map(msgspec.json.encode, results.points))
    assert head.endswith(b"[]}"), "points come last"
    return head[:-2] + b"\n" + points + b"\n]}\n"


def ratio(ours: Mapping[int, float], base: Mapping[int, float], floor: float = 0.0) -> Ratio | None:
    """Values by seed; below ``floor`` they count as ``floor``. None if nothing can be divided."""
    pairs = [(max(ours[seed], floor), max(base[seed], floor)) for seed in ours if seed in base]
    if not pairs or any(mine <= 0 or theirs <= 0 for mine, theirs in pairs):
        return None
    logs = [math.log(mine / theirs) for mine, theirs in pairs]
    mean = fmean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean))
    error = float(stats.sem(logs))
    reach = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1))
    return Ratio(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))


def points_of(done: Iterable[Done]) -> list[Point]:
    """One point for all seeds of a case, policy and pressure (or load), in order of appearance."""
    groups: dict[tuple[str, bool, float], dict[str, list[Done]]] = {}
    for each in done:
        cell = each.cell
        group = groups.setdefault((cell.case.name, cell.open_loop, cell.at), {})
        group.setdefault(cell.policy, []).append(each)
    return [
        _point(policy, runs, group.get(BASELINE, []))
        for group in groups.values()
        for policy, runs in group.items()
    ]


def _point(policy: str, runs: Sequence[Done], base: Sequence[Done]) -> Point:
    cell = runs[0].cell
    measures = {figure.name: _measured(figure, runs, base) for figure in FIGURES}
    return Point(
        case=cell.case.name,
        policy=policy,
        open_loop=cell.open_loop,
        at=cell.at,
        amount=cell.amount,
        seeds=len(runs),
        packing_tasks_per_hour=_short(runs[0].summary.packing_tasks_per_hour or 0.0),
        measures={name: value for name, value in measures.items() if value is not None},
    )


def _measured(figure: Figure, runs: Sequence[Done], base: Sequence[Done]) -> Measured | None:
    ours, theirs = _by_seed(figure, runs), _by_seed(figure, base)
    if not ours:
        return None
    found = None if runs is base else ratio(ours, theirs, figure.floor)
    return Measured(_short(fmean(ours.values())), None if found is None else _shortened(found))


def _by_seed(figure: Figure, runs: Iterable[Done]) -> dict[int, float]:
    values = {each.cell.seed: _value(figure, each.summary) for each in runs}
    return {seed: value for seed, value in values.items() if value is not None}


def _value(figure: Figure, summary: Summary) -> float | None:
    value = figure.of(summary)
    return None if value is None else float(value)


def _shortened(ratio: Ratio) -> Ratio:
    if ratio.low is None or ratio.high is None:
        return Ratio(_short(ratio.mean))
    return Ratio(_short(ratio.mean), _short(ratio.low), _short(ratio.high))


def _short(value: float) -> float:
    """Four digits: more would say more than was measured, and make the file large."""
    return float(f"{value:.4g}")
