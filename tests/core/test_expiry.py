"""Programs that say nothing any more, and what is learned of them."""

from __future__ import annotations

import pytest

from agentsched.core import events as ev
from agentsched.core.expiry import SILENT_TOOL_FACTOR, Expiry
from agentsched.graphs.predict import PRIOR_GAPS_S, GapModel, ReturnModel
from tests.core.harness import Harness

EXPIRY = Expiry(floor_s=60.0, ceiling_s=3600.0, probability=0.01)


def finish(harness: Harness, program: str, *, tool: bool, prompt_tokens: int = 100) -> None:
    """One call of the program, answered with or without a call of a tool."""
    harness.arrive(program, prompt_tokens)
    (call,) = harness.core.state.programs[program].calls.values()
    harness.post(ev.CallStarted(call=call.name, cached_tokens=0))
    refs = (ev.ToolCallRef(tool_call=f"t-{call.name}", tool="bash"),) if tool else ()
    harness.post(
        ev.CallFinished(
            call=call.name, prompt_tokens=prompt_tokens, cached_tokens=0, output_tokens=9, tool_calls=refs
        )
    )


def closed_after_s(harness: Harness, program: str, expiry: Expiry = EXPIRY) -> int:
    """Seconds of silence after which it is over, to 10 s."""
    return next(s for s in range(0, 100_000, 10) if program in harness.core.expired(harness.now + s, expiry))


def returning(gap_s: float, times: int, *, tool: bool = True) -> Harness:
    """A core that has seen a program return so often after such gaps."""
    harness = Harness("agentsched")
    teacher = harness.open()
    finish(harness, teacher, tool=tool)
    for _ in range(times):
        harness.now += gap_s
        finish(harness, teacher, tool=tool)
    return harness


def test_never_before_the_floor_nor_after_the_ceiling() -> None:
    harness = returning(1.0, 100)
    program = harness.open()
    finish(harness, program, tool=False)
    assert closed_after_s(harness, program) == 60
    slow = returning(3000.0, 100)
    program = slow.open()
    finish(slow, program, tool=True)
    assert closed_after_s(slow, program) == 3600
    assert closed_after_s(slow, program, Expiry(floor_s=60.0, ceiling_s=30.0)) == 30


def test_who_asked_for_a_tool_is_waited_for_longer() -> None:
    harness = returning(5.0, 20)
    asked, done = harness.open(), harness.open()
    finish(harness, asked, tool=True)
    finish(harness, done, tool=False)
    assert closed_after_s(harness, done) < closed_after_s(harness, asked)


def test_longer_gaps_are_waited_for_longer() -> None:
    waits = []
    for gap_s in (2.0, 60.0):
        harness = returning(gap_s, 50)
        program = harness.open()
        finish(harness, program, tool=True)
        waits.append(closed_after_s(harness, program))
    assert waits[0] < waits[1]


def test_whose_owner_announced_more_calls_is_in_mid_work() -> None:
    harness = returning(5.0, 20)
    plain, announced = harness.open(), harness.open()
    harness.post(ev.ProgramAnnotated(program=announced, expected_calls=4))
    finish(harness, plain, tool=False)
    finish(harness, announced, tool=False)
    assert closed_after_s(harness, plain) < closed_after_s(harness, announced)


def test_a_running_tool_keeps_its_program_until_its_reporter_must_be_dead() -> None:
    harness = returning(1.0, 100)
    program = harness.open()
    finish(harness, program, tool=True)
    harness.post(ev.ToolStarted(tool_call="t", program=program, tool="bash"))
    assert closed_after_s(harness, program) == SILENT_TOOL_FACTOR * 3600


def test_any_word_begins_the_silence_anew() -> None:
    harness = returning(1.0, 100)
    program = harness.open()
    finish(harness, program, tool=False)
    harness.post(ev.ProgramAnnotated(program=program), after_s=59.0)
    assert program not in harness.core.expired(harness.now + 59.0, EXPIRY)
    assert program in harness.core.expired(harness.now + 60.0, EXPIRY)


def test_who_never_called_or_was_cut_off_has_until_the_ceiling() -> None:
    harness = returning(1.0, 100)
    opened, cut_off = harness.open(), harness.open()
    harness.arrive(cut_off)
    (call,) = harness.core.state.programs[cut_off].calls.values()
    harness.post(ev.CallAborted(call=call.name, reason="client gone"))
    assert closed_after_s(harness, opened) == closed_after_s(harness, cut_off) == 3600


def test_who_has_a_call_is_never_over() -> None:
    harness = Harness("agentsched")
    program = harness.open()
    harness.arrive(program)
    assert not harness.core.expired(harness.now + 1e6, EXPIRY)


def test_coming_back_corrects_what_was_believed() -> None:
    """Else a rule that closes early would never see a long gap, and go on closing early."""
    harness = returning(1.0, 100, tool=False)
    for _ in range(30):
        program = harness.open()
        finish(harness, program, tool=False)
        harness.post(ev.ProgramClosed(program=program, expired=True), after_s=100.0)
        harness.post(ev.ProgramOpened(program=program), after_s=200.0)
        finish(harness, program, tool=False)
        harness.post(ev.ProgramClosed(program=program))
    program = harness.open()
    finish(harness, program, tool=False)
    assert closed_after_s(harness, program) > 300


def test_an_annotated_deadline_counts_from_then_and_calls_left_are_believed() -> None:
    harness = Harness("agentsched")
    program = harness.open()
    finish(harness, program, tool=True)
    harness.post(ev.ProgramAnnotated(program=program, expected_calls=40, deadline_s=30.0), after_s=5.0)
    known = harness.core.state.programs[program]
    assert (known.due_s, known.expected_calls) == (harness.now + 30.0, 40)
    forecast = harness.core.policy.admission.forecast(harness.core.state, known)  # type: ignore[attr-defined]
    assert forecast.calls_left == 39
    with pytest.raises(ValueError, match=r"ProgramAnnotated\.deadline_s"):
        ev.ProgramAnnotated(program="p", deadline_s=0.0)


def test_survival_falls_and_never_reaches_nothing() -> None:
    model = GapModel()
    assert model.survival("bash", 0.0) == 1.0
    shares = [model.survival("bash", gap_s) for gap_s in (0.0, *PRIOR_GAPS_S, 100.0, 1e6)]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] < 1e-6
    for _ in range(99):
        model.observe("bash", 10.0)
    assert model.survival("bash", 9.0) == 1.0
    assert model.survival("bash", 10.0) == pytest.approx(0.01)


def test_returns_are_learned_by_whether_a_tool_was_asked_for() -> None:
    model = ReturnModel()
    assert model.probability(True, 1.0) == pytest.approx(0.98)
    assert model.probability(False, 1.0) == pytest.approx(0.5)
    for _ in range(10_000):
        model.observe(False, returned=True)
    assert model.probability(False, 1.0) > 0.99
    assert model.probability(True, 1.0) == pytest.approx(0.98)
    with pytest.raises(ValueError, match="survival"):
        model.probability(True, 1.5)
