"""Deadlines: kept where they can be, within bounds, and of no effect where none is at stake."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core import events as ev
from agentsched.core import log as event_log
from agentsched.core.decisions import Admit
from tests.core.harness import CAPACITY, Harness
from tests.core.test_properties import STEPS, decided, play

HALF = 2 * CAPACITY // 3
"""Tokens of which no two programs fit at once."""


def come(harness: Harness, deadline_s: float | None = None, tenant: str = "default") -> str:
    harness.opened += 1
    name = f"p{harness.opened}"
    harness.post(ev.ProgramOpened(program=name, tenant=tenant, deadline_s=deadline_s))
    harness.arrive(name, HALF)
    return name


def end(harness: Harness, program: str, after_s: float = 0.0) -> list[str]:
    """The program's call and life end; who is seated then."""
    harness.now += after_s
    harness.run_call(program)
    decisions = harness.post(ev.ProgramClosed(program=program))
    return [decision.program for decision in decisions if isinstance(decision, Admit)]


def test_the_earliest_deadline_at_stake_goes_first() -> None:
    harness = Harness("agentsched")
    sits, old, late, soon = come(harness), come(harness), come(harness, 40.0), come(harness, 30.0)
    assert end(harness, sits, after_s=10.0) == [soon]
    assert end(harness, soon, after_s=10.0) == [late]
    assert end(harness, late) == [old]


def test_who_cannot_make_it_any_more_has_no_claim() -> None:
    harness = Harness("agentsched")
    sits, old, hopeless = come(harness), come(harness), come(harness, 12.0)
    assert end(harness, sits, after_s=10.0) == [old], "a life of 10 s does not fit into 2 s"
    assert end(harness, old) == [hopeless]


def test_a_far_off_deadline_gives_no_claim() -> None:
    harness = Harness("agentsched")
    sits, old, far = come(harness), come(harness), come(harness, 1_000.0)
    assert end(harness, sits, after_s=10.0) == [old]
    assert end(harness, old) == [far]


def test_a_pressing_program_is_held_against_what_is_needed_now() -> None:
    """Not against the predicted peak, in which it would not fit."""
    seats = []
    for deadline_s in (None, 30.0):
        harness = Harness("agentsched")
        for _ in range(2):
            harness.arrive(harness.open(), CAPACITY // 4)
        harness.now += 25.0
        program = harness.open()
        harness.post(ev.ProgramClosed(program=program))
        harness.deadline_s = deadline_s
        late = harness.open()
        harness.arrive(late, CAPACITY // 4)
        harness.now += 25.0
        harness.post(ev.Woken())
        seats.append(harness.core.state.programs[late].foreground)
    assert seats == [False, True]


@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_deadlines_that_are_not_at_stake_change_nothing(steps: list[tuple[int, float]]) -> None:
    without, far_off = Harness("agentsched"), Harness("agentsched", deadline_s=1e9)
    play(without, steps)
    play(far_off, steps)
    assert decided(without) == decided(far_off)


@given(steps=STEPS, deadline_s=st.floats(1.0, 500.0))
@settings(max_examples=60, deadline=None)
def test_a_log_with_deadlines_replays_and_everybody_comes_to_an_end(
    steps: list[tuple[int, float]], deadline_s: float
) -> None:
    harness = Harness("agentsched", deadline_s=deadline_s)
    play(harness, steps)
    alive = len(harness.core.state.programs)
    assert harness.drain() <= 20 * alive + 20
    header = event_log.Header(agentsched="test", policy="agentsched", epoch=1, started_unix_s=0.0)
    lines = [event_log.encode(header), *(event_log.encode(entry) for entry in harness.entries)]
    pairs = list(event_log.replay(lines))
    assert all(before == after for before, after in pairs)
    assert len(pairs) == len(decided(harness))


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, math.inf, math.nan])
def test_a_deadline_that_is_none_is_refused(deadline_s: float) -> None:
    with pytest.raises(ValueError, match="deadline_s"):
        ev.ProgramOpened(program="p", deadline_s=deadline_s)
