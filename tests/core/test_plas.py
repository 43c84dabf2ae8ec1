"""PLAS's characteristic decisions, on cases made by hand."""

from __future__ import annotations

import pytest

from agentsched.core import events as ev
from agentsched.core.decisions import Admit, AnyDecision, Rank
from agentsched.core.policies.plas import QUANTUM_S, STARVED, queue_of
from tests.core.harness import CAPACITY, Harness


def rank_of(decided: list[AnyDecision], program: str) -> list[float]:
    return [d.key for d in decided if isinstance(d, Rank) and d.program == program]


def serve(harness: Harness, program: str, seconds: float, tokens: int = 1_000) -> list[AnyDecision]:
    """One call that runs for so long; what was decided when it arrived."""
    decided = harness.arrive(program, tokens)
    (call,) = harness.core.state.programs[program].calls.values()
    harness.advance(call)
    harness.now += seconds
    harness.run_call(program)
    return decided


@pytest.mark.parametrize(("quanta", "queue"), [(0.0, 0), (0.99, 0), (1.0, 1), (1.99, 1), (2.0, 2), (9.0, 4)])
def test_queues_are_powers_of_two_of_the_quantum(quanta: float, queue: int) -> None:
    assert queue_of(quanta * QUANTUM_S) == queue


def test_the_program_that_was_served_least_goes_first() -> None:
    harness = Harness("plas")
    old, young = harness.open(), harness.open()
    assert rank_of(serve(harness, old, 5 * QUANTUM_S), old) == [], "0, which is what no rank means"
    serve(harness, young, 1.5 * QUANTUM_S)
    assert rank_of(harness.arrive(old), old) == [3.0]
    assert rank_of(harness.arrive(young), young) == [1.0]
    newcomer = harness.open()
    assert rank_of(harness.arrive(newcomer), newcomer) == []


def test_waiting_is_not_service_and_a_queue_that_stays_is_not_said_again() -> None:
    harness = Harness("plas")
    program = harness.open()
    harness.arrive(program)
    harness.now += 100 * QUANTUM_S
    harness.run_call(program)
    assert rank_of(harness.arrive(program), program) == []


def test_a_starving_call_goes_to_the_first_queue_and_its_program_begins_anew() -> None:
    harness = Harness("plas")
    program = harness.open()
    serve(harness, program, 2 * QUANTUM_S)
    arrived_s = harness.now
    assert rank_of(harness.arrive(program), program) == [2.0]
    wakeup_s = harness.core.next_wakeup()
    assert wakeup_s is not None
    assert wakeup_s == pytest.approx(arrived_s + STARVED * 2 * QUANTUM_S)
    assert not rank_of(harness.post(ev.Woken(), after_s=QUANTUM_S), program)
    promoted = harness.post(ev.Woken(), after_s=wakeup_s - harness.now)
    assert rank_of(promoted, program) == [0.0]
    harness.run_call(program)
    assert rank_of(harness.arrive(program), program) == [0.0], "engine and core agree again"
    assert harness.core.next_wakeup() is None


def test_a_call_that_began_in_time_is_not_promoted() -> None:
    harness = Harness("plas")
    program = harness.open()
    serve(harness, program, 2 * QUANTUM_S)
    harness.arrive(program)
    (call,) = harness.core.state.calls.values()
    harness.advance(call)
    assert not rank_of(harness.post(ev.Woken(), after_s=1e3), program)


def test_a_long_prefix_stays_and_a_short_one_follows_the_load() -> None:
    harness = Harness("plas")
    for _ in range(4):
        harness.arrive(harness.open(), 1_000)
    harness.arrive(harness.open(), 3_000)
    harness.post(ev.EngineAttached(engine="e1", capacity_tokens=CAPACITY, block_tokens=16))
    harness.run_call("p5")
    assert harness.core.state.programs["p5"].seat == "e0"
    harness.run_call("p1")
    moved = [
        e.decision for e in harness.entries if isinstance(e.decision, Admit) and e.decision.engine == "e1"
    ]
    assert [d.program for d in moved] == ["p1"]


def test_new_programs_go_where_the_fewest_calls_are() -> None:
    harness = Harness("plas")
    harness.post(ev.EngineAttached(engine="e1", capacity_tokens=CAPACITY, block_tokens=16))
    for _ in range(4):
        harness.arrive(harness.open(), 1_000)
    seats = [p.seat for p in harness.core.state.programs.values()]
    assert seats == ["e0", "e1", "e0", "e1"]
