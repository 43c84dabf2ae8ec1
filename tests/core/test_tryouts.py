"""Trials: short programs do not wait behind long ones, and nobody loses by it."""

from __future__ import annotations

from agentsched.core import events as ev
from agentsched.core.decisions import Admit, Pause
from agentsched.core.policies import tryouts
from agentsched.core.policies.seats import Seats
from tests.core.harness import CAPACITY, Harness

SMALL = 200
SHORT = 3
FULL = CAPACITY - 2_000
"""A program that leaves some room, but none by predicted peak."""


def crowded(policy: str = "agentsched") -> Harness:
    """Short programs have been seen; a large one computes, and another one waits."""
    harness = Harness(policy)
    for _ in range(SHORT):
        harness.arrive(name := harness.open(), SMALL)
        harness.run_call(name)
        harness.post(ev.ProgramClosed(program=name))
    harness.arrive(harness.open(), FULL)
    harness.arrive(harness.open(), FULL)
    assert len(harness.core.state.queue) == 1
    return harness


def newcomer(harness: Harness, prompt_tokens: int = SMALL) -> tuple[str, bool]:
    """A program comes; whether it is let in."""
    name = harness.open()
    decided = harness.arrive(name, prompt_tokens)
    return name, any(isinstance(d, Admit) and d.program == name for d in decided)


def run_calls(harness: Harness, name: str, count: int, every_s: float) -> list[str]:
    """Calls of a seated program, the first of them there already; who was paused meanwhile."""
    paused: list[str] = []
    for number in range(count):
        if number:
            harness.now += every_s
            harness.arrive(name, SMALL + 60 * number)
        (call,) = harness.core.state.programs[name].calls.values()
        while call.name in harness.core.state.calls:
            paused += [d.program for d in harness.advance(call) if isinstance(d, Pause)]
    return paused


def test_a_small_newcomer_begins_while_a_large_one_waits_before_it() -> None:
    harness = crowded()
    name, seated = newcomer(harness)
    assert seated
    assert run_calls(harness, name, 3, 1.0) == []
    harness.post(ev.ProgramClosed(program=name))


def test_without_trials_it_waits() -> None:
    assert not newcomer(crowded("agentsched-no-tryouts"))[1]


def test_nobody_is_tried_before_short_programs_were_seen() -> None:
    harness = Harness("agentsched")
    harness.arrive(harness.open(), FULL)
    harness.arrive(harness.open(), FULL)
    assert not newcomer(harness)[1]


def test_a_trial_ends_and_the_program_waits_by_its_old_place() -> None:
    harness = crowded()
    name, _ = newcomer(harness)
    long_s = tryouts.TRIAL_S / (tryouts.TRIAL_CALLS - 2)
    assert run_calls(harness, name, tryouts.TRIAL_CALLS, long_s) == [name]
    first, second = (f"p{SHORT + number}" for number in (1, 2))
    later, _ = newcomer(harness, FULL)
    assert not any(isinstance(d, Admit) for d in harness.arrive(name, 2_000))
    assert list(harness.core.state.queue) == [second, later, name]
    seats = harness.core.policy.admission
    assert isinstance(seats, Seats)
    harness.run_call(first)
    admitted = [d.program for d in harness.post(ev.ProgramClosed(program=first)) if isinstance(d, Admit)]
    assert admitted == [second]
    harness.run_call(second)
    admitted = [d.program for d in harness.post(ev.ProgramClosed(program=second)) if isinstance(d, Admit)]
    assert admitted[0] == name


def test_a_trial_in_a_long_gap_ends_when_its_time_is_over() -> None:
    harness = crowded()
    name, _ = newcomer(harness)
    assert run_calls(harness, name, tryouts.TRIAL_CALLS, 0.1) == []
    for _ in range(20):
        wakeup_s = harness.core.next_wakeup()
        assert wakeup_s is not None
        decided = harness.post(ev.Woken(), after_s=max(0.0, wakeup_s - harness.now))
        if any(isinstance(d, Pause) and d.program == name for d in decided):
            break
    else:
        raise AssertionError("its trial went on for ever")


def test_what_is_large_is_not_tried() -> None:
    assert not newcomer(crowded(), int(tryouts.MOST_OF_ONE * CAPACITY) + 100)[1]


def test_nobody_is_tried_where_programs_are_long() -> None:
    harness = crowded()
    for _ in range(60):
        name, seated = newcomer(harness)
        if not seated:
            break
        run_calls(harness, name, 2, 2 * tryouts.TRIAL_S)
        harness.post(ev.ProgramClosed(program=name))
    else:
        raise AssertionError("trials never stop, though no program ends within one")
