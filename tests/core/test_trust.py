"""Foresight of gaps is believed while it serves better than the plain curve, and again once it does."""

from __future__ import annotations

from agentsched.core import Core
from agentsched.core import events as ev
from agentsched.core.decisions import Retain
from agentsched.core.foresight import GapCurve, Learned
from agentsched.core.policies.agentsched import _policy
from agentsched.core.state import Program, State
from agentsched.core.trust import MOST_COST, PRICES_PER_S, Trusted, holding_cost
from tests.core.harness import Harness

GAP_S = 2.0
RIGHT: GapCurve = ((0.0, 1.0 / GAP_S), (GAP_S + 0.1, 0.0))
NEVER: GapCurve = ((0.0, 0.0),)


class Said(Learned):
    """Says of every gap what it is told to say."""

    def __init__(self, curve: GapCurve) -> None:
        super().__init__()
        self.curve_said = curve

    def gap(self, state: State, program: Program) -> GapCurve:
        return self.curve_said


def harness(said: Said) -> Harness:
    made = Harness("agentsched")
    made.core = Core(_policy("agentsched", said))
    made.post(ev.EngineAttached(engine="e0", capacity_tokens=100_000, block_tokens=16))
    return made


def gaps(at: Harness, program: str, number: int) -> list[float]:
    """What the program's KV was worth at the beginning of each gap; all last ``GAP_S``."""
    worth = []
    for _ in range(number):
        at.arrive(program)
        before = len(at.entries)
        at.run_call(program)
        decided = [entry.decision for entry in at.entries[before:]]
        (retained,) = [decision for decision in decided if isinstance(decision, Retain)]
        worth.append(retained.segments[0].device[0].value)
        at.now += GAP_S
    return worth


def test_who_says_that_nobody_returns_is_believed_at_first_and_then_no_more() -> None:
    at = harness(Said(NEVER))
    worth = gaps(at, at.open(), 60)
    assert worth[0] == 0.0
    assert all(value > 0.1 for value in worth[-20:])


def test_who_is_right_again_is_believed_again() -> None:
    said = Said(NEVER)
    at = harness(said)
    program = at.open()
    gaps(at, program, 60)
    said.curve_said = ((0.0, 7.0), (GAP_S + 0.1, 0.0))
    worth = gaps(at, program, 400)
    assert worth[0] != 7.0
    assert worth[-1] == 7.0


def test_who_is_right_is_believed_throughout() -> None:
    at = harness(Said(RIGHT))
    assert set(gaps(at, at.open(), 60)) == {1.0 / GAP_S}


def test_holding_costs_what_was_held_and_letting_go_too_soon_a_recomputation() -> None:
    dearest, *_, cheapest = PRICES_PER_S
    assert holding_cost(NEVER, GAP_S) == len(PRICES_PER_S)  # let go at once, whatever holding costs
    hold: GapCurve = ((0.0, 1e9), (1e9, 0.0))
    assert holding_cost(hold, GAP_S) == sum(price * GAP_S for price in PRICES_PER_S)
    assert holding_cost(hold, 1e6) == len(PRICES_PER_S) * MOST_COST
    assert dearest * GAP_S > 1 > cheapest * GAP_S


def test_a_program_that_ends_in_its_gap_proves_nothing() -> None:
    said = Said(NEVER)
    at = harness(said)
    for _ in range(100):
        program = at.open()
        gaps(at, program, 1)
        at.post(ev.ProgramClosed(program=program))
    trusted = at.core.policy.learners[0]
    assert isinstance(trusted, Trusted)
    assert trusted.believed
