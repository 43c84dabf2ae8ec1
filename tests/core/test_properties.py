"""What holds for every policy, whatever happens in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core import POLICY_NAMES, Core, events, make_policy
from agentsched.core import log as event_log
from agentsched.core.decisions import Admit, AnyDecision, Pause
from agentsched.core.forecast import predicted_peak
from agentsched.core.policies.seats import FULL_SHARE, LITTLE_SHARE, Seats
from tests.core.harness import Harness

STEPS = st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 30)), max_size=60)


def play(harness: Harness, steps: list[tuple[int, float]]) -> None:
    for choice, wait_s in steps:
        harness.now += wait_s
        choices = harness.choices()
        choices[choice % len(choices)]()


def decided(harness: Harness) -> list[AnyDecision]:
    return [entry.decision for entry in harness.entries if entry.decision is not None]


@pytest.mark.parametrize("policy", POLICY_NAMES)
@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_every_decision_has_the_cause_that_led_to_it(policy: str, steps: list[tuple[int, float]]) -> None:
    harness = Harness(policy)
    play(harness, steps)
    cause, seqs = 0, []
    for entry in harness.entries:
        if entry.event is not None:
            cause += 1
        elif entry.decision is not None:
            assert entry.decision.cause == cause
            assert entry.decision.reason
            seqs.append(entry.decision.seq)
    assert seqs == sorted(set(seqs))


@pytest.mark.parametrize("policy", POLICY_NAMES)
@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_the_same_log_gives_the_same_decisions(policy: str, steps: list[tuple[int, float]]) -> None:
    harness = Harness(policy, epoch=7)
    play(harness, steps)
    header = event_log.Header(agentsched="test", policy=policy, epoch=7, started_unix_s=0.0)
    lines = [event_log.encode(header), *(event_log.encode(entry) for entry in harness.entries)]
    pairs = list(event_log.replay(lines))
    assert all(before == after for before, after in pairs)
    assert len(pairs) == len(decided(harness))


@pytest.mark.parametrize("policy", POLICY_NAMES)
@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_everybody_comes_to_an_end(policy: str, steps: list[tuple[int, float]]) -> None:
    """Bounded waiting: once nobody new comes, every program gets its seat and ends."""
    harness = Harness(policy)
    play(harness, steps)
    alive = len(harness.core.state.programs)
    assert harness.drain() <= 20 * alive + 20


@given(steps=STEPS)
@settings(max_examples=100, deadline=None)
def test_seats_are_given_within_the_bound_and_in_order(steps: list[tuple[int, float]]) -> None:
    harness = Harness("agentsched")
    admission = harness.core.policy.admission
    assert isinstance(admission, Seats)
    for choice, wait_s in steps:
        harness.now += wait_s
        before = len(harness.entries)
        choices = harness.choices()
        choices[choice % len(choices)]()
        state = harness.core.state
        admitted = [e.decision for e in harness.entries[before:] if isinstance(e.decision, Admit)]
        if admitted:
            seated = state.seated("e0")
            forecasts = [admission.forecast(state, program) for program in seated]
            last = state.programs[admitted[-1].program]
            share = sum(f.now_tokens for f in forecasts) / state.engines["e0"].capacity_tokens
            if len(seated) > 1:
                assert share <= FULL_SHARE
                if not last.calls_done and share > LITTLE_SHARE:
                    assert predicted_peak(forecasts) <= admission.bound_tokens("e0") + 1e-6
            first_waiting = min((p.order for p in state.waiting()), default=10**9)
            assert all(state.programs[a.program].order < first_waiting for a in admitted)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_without_contention_the_gate_is_open(steps: list[tuple[int, float]]) -> None:
    """While nothing would overflow, ours holds nobody back: the plain baseline's decisions."""
    harness = Harness("agentsched", capacity_tokens=10**9)
    play(harness, [(choice, 0.0) for choice, _ in steps])
    assert not harness.core.state.waiting()
    assert not [d for d in decided(harness) if isinstance(d, Pause)]


def test_a_lost_engine_sends_its_calls_back_to_wait_and_a_new_one_takes_them() -> None:
    harness = Harness("agentsched")
    program = harness.open()
    harness.arrive(program)
    harness.advance(harness.core.state.calls["c1"])
    harness.post(events.EngineLost(engine="e0"))
    assert harness.core.state.waiting()[0].name == program
    back = harness.post(events.EngineAttached(engine="e1", capacity_tokens=5_000, block_tokens=16))
    assert [d.engine for d in back if isinstance(d, Admit)] == ["e1"]


def test_a_core_refuses_what_cannot_be_and_goes_on() -> None:
    core = Core(make_policy("agentsched"))
    core.handle(1.0, events.ProgramOpened(program="p"))
    for bad in (
        events.ProgramOpened(program="p"),
        events.CallArrived(call="c", program="nobody", prompt_tokens=1, max_output_tokens=1),
        events.FirstToken(call="c"),
        events.ProgramClosed(program="nobody"),
        events.EngineLost(engine="e"),
    ):
        with pytest.raises(Exception, match=r"open|live|attached"):
            core.handle(2.0, bad)
    with pytest.raises(Exception, match="backwards"):
        core.handle(0.5, events.Woken())
    core.handle(3.0, events.ProgramClosed(program="p"))
    assert not core.state.programs
