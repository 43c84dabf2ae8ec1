"""Events in orders that are legal but seldom: late reports, aborted calls, retries, tenants without end."""

from __future__ import annotations

import pytest

from agentsched.core import IllegalEvent
from agentsched.core import events as ev
from agentsched.core.decisions import Admit, AnyDecision, Retain
from agentsched.core.policies.turns import Turns
from tests.core.harness import CAPACITY, Harness


def admitted(decided: list[AnyDecision]) -> list[str]:
    return [decision.program for decision in decided if isinstance(decision, Admit)]


def test_a_report_of_a_preemption_may_come_before_a_programs_first_call() -> None:
    harness = Harness("agentsched")
    program = harness.open()
    report = ev.StepReport(engine="e0", free_tokens=0, evictable_tokens=0, preempted=(program, "gone"))
    assert harness.post(report) == []


def test_an_aborted_call_gives_the_value_of_its_kv_back() -> None:
    harness = Harness("agentsched")
    program = harness.open()
    harness.arrive(program)
    harness.run_call(program)
    (queued,) = [d for d in harness.arrive(program, 1_100) if isinstance(d, Retain)]
    (call,) = harness.core.state.programs[program].calls
    (away,) = [d for d in harness.post(ev.CallAborted(call=call, reason="gone")) if isinstance(d, Retain)]
    assert away.segments[0].device[0].value < queued.segments[0].device[0].value / 1_000


def test_a_retry_after_an_abort_teaches_no_tools_duration() -> None:
    harness = Harness("agentsched")
    program = harness.open()
    harness.arrive(program)
    harness.run_call(program)
    harness.now += 30.0
    harness.arrive(program, 1_100)
    learned = list(harness.core.state.gaps.samples_beyond("bash", 0.0))
    for _ in range(20):
        (call,) = harness.core.state.programs[program].calls
        harness.post(ev.CallAborted(call=call, reason="gone"))
        harness.now += 0.5
        harness.arrive(program, 1_100)
    assert list(harness.core.state.gaps.samples_beyond("bash", 0.0)) == learned


def test_who_was_refused_is_looked_at_again_when_it_wants_less() -> None:
    harness = Harness("agentsched-no-tryouts")
    large, small = harness.open(), harness.open()
    harness.arrive(large, CAPACITY - 1_000)
    assert admitted(harness.arrive(small, CAPACITY)) == []
    harness.post(ev.CallAborted(call=f"c{harness.calls}", reason="gone"))
    turns = harness.core.policy.rank
    assert isinstance(turns, Turns)
    turns._accounts[small].place = 1.0  # as if it had begun: only what it needs now counts
    assert admitted(harness.arrive(small, 100)) == [small]


def test_an_endless_stream_of_new_tenants_passes_nobody_for_ever() -> None:
    harness = Harness("agentsched")
    waits = []
    for _ in range(3):
        waits.append(harness.open())
        harness.arrive(waits[-1], CAPACITY - 500)
    seated = waits[0]
    for number in range(400):
        name = f"tenant-{number}"
        harness.post(ev.ProgramOpened(program=name, tenant=name))
        harness.arrive(name, CAPACITY - 500)
        harness.run_call(seated)
        seated = admitted(harness.post(ev.ProgramClosed(program=seated)))[-1]
        if seated == waits[-1]:
            break
    assert seated == waits[-1], "the first tenant's last program was never seated"


def test_tenants_are_forgotten_when_nobody_is_left() -> None:
    harness = Harness("agentsched")
    for number in range(50):
        name = f"tenant-{number}"
        harness.post(ev.ProgramOpened(program=name, tenant=name))
        harness.arrive(name, 500)
        harness.run_call(name)
        harness.post(ev.ProgramClosed(program=name))
    first = harness.open()
    assert admitted(harness.arrive(first, 500)) == [first]
    (turns,) = [learner for learner in harness.core.policy.learners if isinstance(learner, Turns)]
    assert len(turns._tenants) == 1


def test_own_kv_is_not_taken_for_shared_after_a_first_call_was_aborted() -> None:
    harness = Harness("agentsched")
    program = harness.open()
    harness.arrive(program, 4_000)
    harness.post(ev.CallStarted(call="c1", cached_tokens=0))
    harness.post(ev.CallAborted(call="c1", reason="gone"))
    harness.arrive(program, 4_000)
    harness.post(ev.CallStarted(call="c2", cached_tokens=3_984))
    harness.post(ev.CallFinished(call="c2", prompt_tokens=4_000, cached_tokens=3_984, output_tokens=10))
    assert harness.core.state.programs[program].shared_tokens == 0


def test_what_was_shared_is_as_the_end_of_the_first_call_tells() -> None:
    """Where an engine is far away, its start is a guess."""
    harness = Harness("agentsched")
    program = harness.open()
    harness.arrive(program, 4_000)
    harness.post(ev.CallStarted(call="c1", cached_tokens=3_000))
    harness.post(ev.CallFinished(call="c1", prompt_tokens=4_000, cached_tokens=1_024, output_tokens=10))
    assert harness.core.state.programs[program].shared_tokens == 1_024
    harness.arrive(program, 4_100)
    harness.post(ev.CallStarted(call="c2", cached_tokens=4_000))
    harness.post(ev.CallFinished(call="c2", prompt_tokens=4_100, cached_tokens=4_000, output_tokens=10))
    assert harness.core.state.programs[program].shared_tokens == 1_024


def test_a_side_call_does_not_shrink_a_context_and_a_new_start_does() -> None:
    harness = Harness("agentsched")
    program = harness.open()
    for tokens, context in ((4_000, 4_050), (200, 4_050), (4_100, 4_150), (300, 4_150), (350, 400)):
        harness.arrive(program, tokens)
        harness.run_call(program)
        assert harness.core.state.programs[program].context_tokens == context


def test_the_line_does_not_grow_with_retries() -> None:
    harness = Harness("agentsched")
    first, head, behind = harness.open(), harness.open(), harness.open()
    harness.arrive(first, CAPACITY - 500)
    harness.arrive(head, CAPACITY - 500)
    for _ in range(500):
        harness.arrive(behind, CAPACITY - 500)
        harness.post(ev.CallAborted(call=f"c{harness.calls}", reason="gone"))
    lines = harness.core.policy.rank._lined.values()  # type: ignore[attr-defined]
    assert sum(len(line) for tenant in lines for line in tenant.lines.values()) < 100


def test_what_makes_no_sense_is_refused() -> None:
    harness = Harness("agentsched")
    with pytest.raises(IllegalEvent, match="attached already"):
        harness.post(ev.EngineAttached(engine="e0", capacity_tokens=10, block_tokens=16))
    with pytest.raises(ValueError, match="capacity_tokens"):
        ev.EngineAttached(engine="e1", capacity_tokens=0, block_tokens=16)
    with pytest.raises(ValueError, match="weight"):
        ev.ProgramOpened(program="p", weight=1e-300)
