"""A policy that only watches: nothing waits, nothing is ordered, and it can take over at any time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core import POLICY_NAMES
from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.log import Header, encode, replay
from agentsched.core.state import Phase
from tests.core.harness import CAPACITY, Harness

FULL = CAPACITY - 500


def watching(policy: str = "agentsched") -> Harness:
    harness = Harness(policy)
    harness.post(ev.PolicyEngaged(engaged=False))
    return harness


def test_who_would_wait_is_let_through_and_the_reason_said() -> None:
    harness = watching()
    harness.arrive(harness.open(), FULL)
    decided = harness.arrive(harness.open(), FULL)
    (passed,) = (d for d in decided if isinstance(d, de.Pass))
    assert (passed.program, passed.engine) == ("p2", "e0")
    assert "would wait" in passed.reason
    harness.run_call("p2")


def test_what_engines_would_be_told_is_advice() -> None:
    harness = watching()
    harness.arrive(name := harness.open())
    harness.run_call(name)
    orders = [e.decision for e in harness.entries if isinstance(e.decision, de.EngineOrder)]
    since = [order for order in orders if order.cause > 2]
    assert any(isinstance(order, de.Retain) for order in since)
    assert all(order.advice for order in since)


def test_what_engines_were_told_is_taken_back_and_told_again() -> None:
    harness = Harness("agentsched")
    harness.arrive(name := harness.open())
    harness.run_call(name)
    back = harness.post(ev.PolicyEngaged(engaged=False))
    assert [d.program for d in back if isinstance(d, de.Release) and not d.advice] == [name]
    assert [d.engine for d in back if isinstance(d, de.EngineTerms) and not d.advice] == ["e0"]
    again = harness.post(ev.PolicyEngaged(engaged=True))
    assert [d.program for d in again if isinstance(d, de.Retain) and not d.advice] == [name]
    assert not harness.post(ev.PolicyEngaged(engaged=True)), "nothing changed"


def test_who_waits_when_it_stops_acting_goes_on_at_once() -> None:
    harness = Harness("agentsched")
    for _ in range(2):
        harness.arrive(harness.open(), FULL)
    assert list(harness.core.state.queue) == ["p2"]
    decided = harness.post(ev.PolicyEngaged(engaged=False))
    assert [d.program for d in decided if isinstance(d, de.Pass)] == ["p2"]
    assert not harness.core.state.queue


def test_engines_are_shared_out_as_without_a_policy() -> None:
    harness = watching()
    harness.post(ev.EngineAttached(engine="e1", capacity_tokens=CAPACITY, block_tokens=16))
    for _ in range(6):
        harness.arrive(harness.open(), FULL)
    homes = [program.home for program in harness.core.state.programs.values()]
    assert sorted(map(str, homes)) == ["e0"] * 3 + ["e1"] * 3
    harness.run_call("p4")
    harness.arrive("p4", FULL)
    assert harness.core.state.programs["p4"].home == homes[3], "it goes where its KV is"


@settings(max_examples=150)
@given(st.sampled_from(POLICY_NAMES), st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), max_size=200))
def test_switched_at_any_time_nothing_breaks(policy: str, steps: list[tuple[int, bool]]) -> None:
    harness, engaged = Harness(policy), True
    for number, switch in steps:
        if switch and number % 7 == 0:
            engaged = not engaged
            harness.post(ev.PolicyEngaged(engaged=engaged))
        choices = harness.choices()
        choices[number % len(choices)]()
        if not engaged:
            assert not any(c.phase is Phase.WAITING for c in harness.core.state.calls.values())
    harness.post(ev.PolicyEngaged(engaged=True))
    harness.drain()
    lines = [encode(Header(agentsched="", policy=policy, epoch=1, started_unix_s=0.0))]
    lines += [encode(entry) for entry in harness.entries]
    assert all(logged == anew for logged, anew in replay([line + b"\n" for line in lines]))
