"""Arrival times: rates, burstiness, the shape of a day, and scripts that are given times."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import mean, stdev

import pytest

from agentsched.workloads.arrivals import (
    OFFICE_DAY,
    closed,
    day,
    gamma,
    poisson,
    with_arrivals,
    with_deadlines,
)
from agentsched.workloads.scripts import Script, Turn

OPEN: list[Callable[[int], list[float]]] = [
    lambda seed: poisson(60, 500, seed),
    lambda seed: gamma(60, 500, seed, cv=3.0),
    lambda seed: day(60, 504, seed),
]


def intervals(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


@pytest.mark.parametrize("arrivals", OPEN)
def test_open_arrivals_keep_their_rate_and_repeat_by_seed(arrivals: Callable[[int], list[float]]) -> None:
    times = arrivals(7)
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 504 * 3600
    assert times == arrivals(7) != arrivals(8)
    counts = [len(arrivals(seed)) for seed in range(10)]
    assert mean(counts) == pytest.approx(60 * 500, rel=0.03)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_intervals_vary_as_asked(cv: float) -> None:
    gaps = intervals(gamma(100, 400, 1, cv=cv))
    assert stdev(gaps) / mean(gaps) == pytest.approx(cv, rel=0.05)


def test_bursty_arrivals_do_not_begin_in_a_burst() -> None:
    """A process that began with the clock would bring (cv^2 - 1) / 2 = 4 arrivals more than its rate."""
    assert mean(len(gamma(10, 1, seed, cv=3.0)) for seed in range(4000)) == pytest.approx(10, abs=1.0)


def test_a_day_has_its_hours() -> None:
    times = [time for seed in range(5) for time in day(1000, 48, seed, cv=1.0)]
    counts = [0] * 24
    for time in times:
        counts[int(time // 3600) % 24] += 1
    expected = [weight * 24 / sum(OFFICE_DAY) * 1000 * 10 for weight in OFFICE_DAY]
    assert counts == pytest.approx(expected, rel=0.12)


def test_part_of_a_day_ends_where_it_should() -> None:
    times = day(1000, 1.5, 3)
    assert 3600 < times[-1] < 1.5 * 3600


def test_closed_loops_start_at_once_or_staggered() -> None:
    assert closed(3) == [0, 0, 0]
    assert closed(3, stagger_s=2.0) == [0, 2, 4]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_rates_must_be_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be positive"):
        poisson(rate, 1, 0)
    with pytest.raises(ValueError, match="profile"):
        day(1, 1, 0, profile=[1.0] * 23)


def test_roots_get_times_and_deadlines_and_sub_agents_do_not() -> None:
    call = Turn(100, 10, 0.0)
    scripts = [
        Script("sub", 0.0, (call,)),
        Script("a", 0.0, (Turn(100, 10, 0.0, agents=("sub",)),)),
        Script("b", 0.0, (call,)),
    ]
    arrived = with_arrivals(scripts, [5.0, 9.0, 12.0])
    assert [script.arrives_s for script in arrived] == [0.0, 5.0, 9.0]
    with pytest.raises(ValueError, match="2 programs need as many"):
        with_arrivals(scripts, [1.0])
    limited = with_deadlines(scripts, {"a": 10.0, "b": 4.0}, factor=1.5)
    assert [script.deadline_s for script in limited] == [None, 15.0, 6.0]
