"""Each policy's characteristic decision, on a case made by hand."""

from __future__ import annotations

from typing import TypeVar

import pytest

from agentsched.core import events as ev
from agentsched.core import make_policy
from agentsched.core.decisions import YIELDS, Admit, AnyDecision, Pause, Rank, Release, Retain
from agentsched.core.forecast import Forecast, predicted_peak
from agentsched.core.foresight import gap_index, index_at, leaves_at_s
from agentsched.core.policies.continuum import best_ttl_s
from agentsched.core.policies.gap_index import worth_of_gap
from agentsched.core.standing import worth_at
from tests.core.harness import Harness

D = TypeVar("D", bound=AnyDecision)


def of(kind: type[D], decided: list[AnyDecision]) -> list[D]:
    return [decision for decision in decided if isinstance(decision, kind)]


def seat_two(policy: str, tokens: int) -> tuple[Harness, list[AnyDecision]]:
    harness = Harness(policy)
    harness.arrive(harness.open(), tokens)
    return harness, harness.arrive(harness.open(), tokens)


def test_fcfs_lru_lets_everybody_in_and_orders_nothing() -> None:
    harness, second = seat_two("fcfs-lru", 9_000)
    assert len(of(Admit, second)) == 1
    harness.run_call("p1")
    assert not [e for e in harness.entries if isinstance(e.decision, Retain | Rank)]


def test_ours_holds_back_a_program_that_would_overflow_later() -> None:
    """Two contexts of 4,500 fit into 10,000 today, but not what they are expected to grow to."""
    harness, second = seat_two("agentsched", 4_500)
    assert not of(Admit, second)
    harness.run_call("p1")
    closed = harness.post(ev.ProgramClosed(program="p1"))
    assert [d.program for d in of(Admit, closed)] == ["p2"]
    assert [d.program for d in of(Release, closed)] == ["p1"]


def test_ours_gives_the_seat_of_a_program_that_stays_away_to_one_that_waits() -> None:
    harness, _ = seat_two("agentsched", 5_500)
    harness.run_call("p1")
    decided: list[AnyDecision] = []
    for _ in range(50):
        wakeup = harness.core.next_wakeup()
        assert wakeup is not None
        assert wakeup > harness.now
        decided = harness.post(ev.Woken(), after_s=wakeup - harness.now)
        if decided:
            break
    assert [d.program for d in of(Pause, decided)] == ["p1"]
    assert [d.program for d in of(Admit, decided)] == ["p2"]
    [kept] = of(Retain, decided)
    worth = [worth_at(kept.segments[0].device, harness.now + later_s) for later_s in (1.0, 600.0)]
    assert kept.program == "p1", "it will be back: worth more than what has ended, less than what has a seat"
    assert worth == [YIELDS, YIELDS]
    assert not of(Admit, harness.arrive("p1", 5_600)), "p1 waits for its turn now"


def test_ours_values_a_gap_less_the_longer_it_outlasts_such_gaps() -> None:
    assert gap_index([1.0] * 9 + [100.0], 0.0) > gap_index([100.0], 2.0) > 0
    curve = ((0.0, 5.0), (2.0, 0.5), (10.0, 0.1))
    steps = worth_of_gap(curve, 50.0, 51.0)
    assert [worth_at(steps, 50.0 + elapsed) for elapsed in (1.5, 5.0, 15.0, 1_000)] == [5.0, 0.5, 0.1, 0.0]


def test_many_steps_are_merged_where_they_are_most_alike_and_never_worth_more() -> None:
    curve = tuple((float(mark), 10.0 / (mark + 1)) for mark in range(12))
    steps = worth_of_gap(curve, 0.0, 0.0)
    assert len(steps) == 7
    assert all(worth_at(steps, mark + 0.5) <= index for mark, index in curve)


def test_a_program_leaves_when_its_gap_is_worth_less_than_the_price() -> None:
    curve = ((0.0, 5.0), (2.0, 0.5), (10.0, 0.1))
    assert leaves_at_s(curve, 0.3) == 10.0
    assert leaves_at_s(curve, 6.0) == 0.0
    assert leaves_at_s(curve, 0.05) == pytest.approx(20.0), "past the last step the index falls as 1/elapsed"
    humped = ((0.0, 0.1), (2.0, 5.0), (10.0, 0.1))
    assert leaves_at_s(humped, 0.3) == 10.0, "a hump still to come is worth waiting for"
    assert index_at(curve, 20.0) == pytest.approx(0.05)


def test_gap_index_is_the_best_rate_of_return() -> None:
    # Gaps of 1 or 9 s, held until both are back: 1/E[gap] = 0.2; until the first: 0.5/1 = 0.5.
    assert gap_index([1.0, 9.0], 0.0) == pytest.approx(0.5, rel=1e-2)
    assert gap_index([4.0, 4.0], 3.0) == pytest.approx(1.0, rel=1e-2)


def test_continuum_pins_for_the_ttl_that_pays_most() -> None:
    # gain 10: P(1)=0.5 -> 4; P(2)=0.75 -> 5.5; P(9)=1 -> 1.
    assert best_ttl_s([1.0, 1.0, 2.0, 9.0], 10.0) == 2.0
    assert best_ttl_s([1.0, 1.0, 2.0, 9.0], 1.0) == 0.0


def test_continuum_returns_within_its_ttl_go_before_earlier_programs() -> None:
    harness, _ = seat_two("continuum", 5_000)
    harness.run_call("p1")
    harness.run_call("p2")
    pinned = [e.decision for e in harness.entries if isinstance(e.decision, Retain)]
    assert {d.program for d in pinned} == {"p1", "p2"}
    until = {d.program: d.lease_until_s for d in pinned}
    harness.now = until["p1"] - 0.01
    late = harness.arrive("p2", 5_100)
    (rank_p2,) = of(Rank, late)
    keys = {e.decision.program: e.decision.key for e in harness.entries if isinstance(e.decision, Rank)}
    harness.arrive(harness.open(), 100)
    newcomer = [e.decision.key for e in harness.entries if isinstance(e.decision, Rank)][-1]
    assert rank_p2.key == keys["p2"] < keys["p1"] < newcomer


def test_predicted_peak_lies_before_an_ending_not_at_the_sum_of_finals() -> None:
    short = Forecast(now_tokens=100, growth_tokens=10, calls_left=2)
    long = Forecast(now_tokens=100, growth_tokens=10, calls_left=20)
    assert predicted_peak([short, long]) == pytest.approx(300)  # the long one alone, at its end
    assert predicted_peak([short, short, long]) == pytest.approx(360)  # all three after 2 calls
    assert predicted_peak([]) == 0


def test_an_unknown_policy_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"fcfs-lru, continuum, .*agentsched"):
        make_policy("lru")
