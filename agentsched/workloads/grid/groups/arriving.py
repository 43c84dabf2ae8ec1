"""Open arrivals: the collapse, order below saturation, and the rate that can be sustained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import msgspec

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
from agentsched.workloads.summary import Summary

LOADS = (0.5, 0.7, 0.85, 0.95, 1.05, 1.25, 1.5, 2.0)
OVERLOAD = 2.0
HOURS, OVERLOAD_HOURS, ORDER_HOURS = 3.0, 2.0, 6.0
OF_SATURATION = 0.9
ORDERED = {"continuum": "program-FCFS (continuum)", "thunderagent": "small ones first (thunderagent)"}
"""Baselines with an order of programs."""
SATURATING = "to see what it serves at most"

MOST_STRETCH = 2.0
"""A rate is sustained if the mean TCT stays within so many times the unloaded one."""
ROUGHLY, EXACTLY = (0.25, 2), (1.0, 5)
"""Of the hours, and seeds: first a rate is found, and then measured."""
LEAST, MOST = 0.4, 1.2
CLOSE_ENOUGH = 1.05
ARRIVALS = {"Poisson": "poisson", "bursts, CV 3": "gamma:3"}


def _open(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        for seed in seeds_of(scale, 2):
            for at in LOADS:
                for policy in (BASELINE, "thunderagent", OURS):
                    hours = OVERLOAD_HOURS if at >= OVERLOAD else HOURS
                    yield opened("open", load, policy, seed, at, min(hours, scale.hours))


def _order(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        ours = [
            msgspec.structs.replace(cell, group="order", row=SATURATING)
            for cell in _open(scale, {load.case.name: load}, found)
            if cell.run.policy == OURS
        ]
        yield from ours
        if any(cell.run not in found for cell in ours):
            continue
        at = round(OF_SATURATION * _saturation(ours, found) / load.packing_tasks_per_hour, 3)
        for seed in seeds_of(scale, 2):
            for policy in (BASELINE, *ORDERED, OURS, YARDSTICK):
                yield opened("order", load, policy, seed, at, min(ORDER_HOURS, scale.hours))


def _saturation(cells: Sequence[Cell], found: Found) -> float:
    """The most tasks an hour served at any rate, mean over seeds."""
    served: dict[float, list[float]] = {}
    for cell in cells:
        summary = found[cell.run].summary
        if summary is not None and summary.steady_tasks_per_hour is not None:
            served.setdefault(cell.at, []).append(summary.steady_tasks_per_hour)
    return max((fmean(each) for each in served.values()), default=0.0)


def _sustained(scale: Scale, loads: Mapping[str, Load], found: Found) -> Iterator[Cell]:
    for load in loads.values():
        for name in ARRIVALS:
            for policy in (BASELINE, OURS, YARDSTICK):
                yield from _search(scale, load, found, policy, name)


def _search(scale: Scale, load: Load, found: Found, policy: str, name: str) -> Iterator[Cell]:
    """For one policy's rate, as far as is found; that of the baseline is not measured exactly."""
    guess: tuple[float, float] | None = None
    for share, seeds in (ROUGHLY,) if policy == BASELINE else (ROUGHLY, EXACTLY):
        hours = scale.hours * share
        row = f"{name}, {hours:g} hours"
        known: dict[float, float] = {}
        while (at := next_rate(known, guess)) is not None:
            cells = [
                opened("sustained", load, policy, seed, at, hours, row=row, arrivals=ARRIVALS[name])
                for seed in seeds_of(scale, seeds)
            ]
            yield from cells
            if any(cell.run not in found for cell in cells):
                return
            known[at] = fmean(_stretch(found[cell.run].summary) for cell in cells)
        guess = bracket(known)


def _stretch(summary: Summary | None) -> float:
    """Mean TCT over that alone; infinite where programs were left unfinished, or nothing came of it."""
    if summary is None or summary.unfinished or not summary.alone_mean_s:
        return math.inf
    return summary.tct_s.mean / summary.alone_mean_s


def next_rate(known: Mapping[float, float], guess: tuple[float, float] | None = None) -> float | None:
    """The share of the packing bound to try next, None if ``known`` (stretches) says enough.

    By halving; with a ``guess`` of the result of ``bracket`` from there on, in steps of ``CLOSE_ENOUGH``.
    """
    below, above = bracket(known)
    tried = known.keys() & {below, above}
    if guess is not None and len(tried) < 2:
        if not tried:
            return guess[0]
        if below in tried:
            return None if below >= MOST else max(guess[1], round(below * CLOSE_ENOUGH, 3))
        return None if above <= LEAST else min(guess[0], round(above / CLOSE_ENOUGH, 3))
    return None if above <= CLOSE_ENOUGH * below + 1e-3 else round(math.sqrt(below * above), 3)


def bracket(known: Mapping[float, float]) -> tuple[float, float]:
    """The largest rate below which all tried were sustained, and the least that was not."""
    above = min((at for at, stretch in known.items() if stretch > MOST_STRETCH), default=MOST)
    below = max(
        (at for at, stretch in known.items() if stretch <= MOST_STRETCH and at < above), default=LEAST
    )
    return below, above


def sustained_rate(known: Mapping[float, float]) -> float:
    """Where the stretch passes ``MOST_STRETCH``: its logarithm is linear between the two nearest rates."""
    below, above = bracket(known)
    if below not in known or above not in known or math.isinf(known[above]):
        return below
    low, high = math.log(known[below]), math.log(known[above])
    return below + (above - below) * (math.log(MOST_STRETCH) - low) / (high - low)


GROUPS = (
    Group(
        name="open",
        about="Poisson arrivals for three hours (at twice the packing bound: two), and the drain, at most "
        "twice as long. Two seeds.",
        cases=("tool-paced",),
        cells=_open,
    ),
    Group(
        name="order",
        about="Poisson arrivals at 0.9 of what ours serves at most (in the group `open`): how long programs "
        "wait for each other. `continuum` is program-FCFS without a gate, and past its own collapse "
        "there; `thunderagent` has a gate that prefers small programs. Two seeds.",
        cases=("tool-paced",),
        cells=_order,
    ),
    Group(
        name="sustained",
        about="The largest rate at which the mean TCT stays within twice the unloaded one, by halving to "
        "5 % and interpolating: with two seeds and a quarter of a day of arrivals, and from there on with "
        "five and a day (`--hours`) for what the goal compares.",
        cases=("tool-paced",),
        cells=_sustained,
    ),
)
