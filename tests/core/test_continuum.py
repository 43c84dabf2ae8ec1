"""Continuum's learned eta, and its pin while a call is queued."""

from __future__ import annotations

from statistics import correlation

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core.decisions import Retain
from agentsched.core.policies.continuum import TurnCorrelation
from agentsched.core.standing import worth_at
from tests.core.harness import Harness


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=1_200))
def test_the_running_correlation_is_that_of_the_last_turns(turns: list[tuple[int, int]]) -> None:
    running = TurnCorrelation()
    for done, left in turns:
        running.add(done, left)
    last = turns[-TurnCorrelation.TURNS :]
    if len({x for x, _ in last}) < 2 or len({y for _, y in last}) < 2:
        assert running.value() is None
    else:
        assert running.value() == pytest.approx(correlation(*zip(*last, strict=True)), abs=1e-9)


def test_who_returns_within_its_ttl_stays_pinned_until_its_call_ran() -> None:
    harness = Harness("continuum")
    harness.arrive(harness.open(), 5_000)
    harness.run_call("p1")
    (pinned,) = [e.decision for e in harness.entries if isinstance(e.decision, Retain)]
    harness.now = pinned.lease_until_s - 0.01
    (again,) = [d for d in harness.arrive("p1", 5_100) if isinstance(d, Retain)]
    assert worth_at(again.segments[0].device, pinned.lease_until_s + 60.0) > 0


def test_who_returns_past_its_ttl_is_not_pinned() -> None:
    harness = Harness("continuum")
    harness.arrive(harness.open(), 5_000)
    harness.run_call("p1")
    (pinned,) = [e.decision for e in harness.entries if isinstance(e.decision, Retain)]
    harness.now = pinned.lease_until_s + 0.01
    assert not [d for d in harness.arrive("p1", 5_100) if isinstance(d, Retain)]
