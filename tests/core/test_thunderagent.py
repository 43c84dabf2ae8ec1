"""ThunderAgent's characteristic decisions, on cases made by hand."""

from __future__ import annotations

from agentsched.core import events as ev
from agentsched.core.decisions import Admit, AnyDecision, Pause
from agentsched.core.policies.thunderagent import MAX_WAIT_S, PERIOD_S
from agentsched.core.state import Phase
from tests.core.harness import CAPACITY, Harness


def admitted(decided: list[AnyDecision]) -> list[str]:
    return [d.program for d in decided if isinstance(d, Admit)]


def paused(decided: list[AnyDecision]) -> list[str]:
    return [d.program for d in decided if isinstance(d, Pause)]


def tick(harness: Harness) -> list[AnyDecision]:
    """The next review that the gate asks for."""
    wakeup_s = harness.core.next_wakeup()
    assert wakeup_s is not None
    assert wakeup_s % PERIOD_S == 0
    return harness.post(ev.Woken(), after_s=wakeup_s - harness.now)


def test_new_programs_are_let_in_while_there_is_room_and_resumed_at_the_next_period() -> None:
    harness = Harness("thunderagent")
    assert admitted(harness.arrive(harness.open(), 4_000)) == ["p1"]
    assert harness.core.next_wakeup() is None, "nobody is held back: nothing to review"
    assert admitted(harness.arrive(harness.open(), 3_000)) == ["p2"]
    assert not admitted(harness.arrive(harness.open(), 2_000)), "7,000 and their buffers leave no room"
    assert not admitted(tick(harness))
    harness.run_call("p1")
    assert not admitted(harness.post(ev.ProgramClosed(program="p1"), after_s=1.0)), "only once a period"
    assert admitted(tick(harness)) == ["p3"]


def test_a_new_program_does_not_overtake_those_held_back() -> None:
    harness = Harness("thunderagent")
    harness.arrive(harness.open(), 6_000)
    harness.arrive(harness.open(), 5_000)
    assert not admitted(harness.arrive(harness.open(), 100))


def test_overflow_pauses_the_shortest_that_is_away_first_and_then_the_shortest_that_computes() -> None:
    harness = Harness("thunderagent")
    for tokens in (1_000, 1_400, 600, 500):
        harness.arrive(harness.open(), tokens)
    for program, tokens in (("p1", 4_000), ("p2", 5_000), ("p3", 3_000), ("p4", 900)):
        harness.run_call(program)
        harness.arrive(program, tokens)
    harness.run_call("p1")
    harness.run_call("p2")
    # 4,050 and 5,050 are away, 3,000 and 900 compute, each with 1,024 to spare, in 10,000.
    decided = tick(harness)
    assert paused(decided) == ["p1", "p2"]
    assert not admitted(decided)
    harness.run_call("p3")
    harness.arrive("p3", 9_500)
    assert paused(tick(harness)) == ["p4"], "it computes; p3 alone may stay, whatever its size"


def test_who_comes_back_too_large_is_paused_with_the_call_that_came() -> None:
    """No host has sent it yet, so it waits, and is let through when the program is resumed."""
    harness = Harness("thunderagent")
    small = harness.open()
    harness.arrive(small, 1_000)
    harness.run_call(small)
    large = harness.open()
    assert admitted(harness.arrive(large, 6_000)) == [large]
    harness.now += PERIOD_S
    assert paused(harness.arrive(small, 5_000)) == [small]
    (call,) = harness.core.state.programs[small].calls.values()
    assert call.phase is Phase.WAITING
    harness.run_call(large)
    harness.post(ev.ProgramClosed(program=large))
    assert admitted(tick(harness)) == [small]
    assert harness.core.state.calls[call.name].phase is Phase.SENT


def test_returning_programs_are_resumed_before_new_ones_and_the_shortest_first() -> None:
    harness = Harness("thunderagent")
    for tokens in (2_000, 1_000, 900):
        harness.arrive(harness.open(), tokens)
    for program in ("p1", "p2", "p3"):
        harness.run_call(program)
    harness.arrive("p1", 9_800)
    assert paused(tick(harness)) == ["p3", "p2"]
    harness.arrive(harness.open(), 100)
    harness.arrive("p2", 3_000)
    harness.arrive("p3", 2_800)
    harness.run_call("p1")
    harness.post(ev.ProgramClosed(program="p1"))
    harness.core.state.engines["e0"].capacity_tokens = CAPACITY
    decided = tick(harness)
    assert sorted(admitted(decided)) == ["p2", "p3", "p4"]
    assert admitted(decided)[0] == "p2", "placed largest first"


def test_a_long_tool_gives_way_to_who_can_run() -> None:
    harness = Harness("thunderagent")
    harness.arrive(harness.open(), 6_000)
    harness.run_call("p1")
    harness.arrive(harness.open(), 5_000)
    assert not admitted(tick(harness)), "away for 5 s of a half-life of 30 s"
    for _ in range(3):
        assert not admitted(tick(harness))
    decided = tick(harness)  # after 25 s its 7,024 weigh 3,972, and 6,024 fit beside them
    assert (admitted(decided), paused(decided)) == (["p2"], ["p1"])


def test_a_resumed_program_goes_to_the_engine_with_most_room() -> None:
    harness = Harness("thunderagent")
    harness.arrive(harness.open(), 7_000)
    harness.arrive(harness.open(), 5_000)
    harness.post(ev.EngineAttached(engine="e1", capacity_tokens=2 * CAPACITY, block_tokens=16))
    (decision,) = [d for d in tick(harness) if isinstance(d, Admit)]
    assert (decision.program, decision.engine) == ("p2", "e1")


def test_who_has_waited_too_long_is_resumed_regardless() -> None:
    harness = Harness("thunderagent")
    harness.arrive(harness.open(), 7_000)
    harness.arrive(harness.open(), 5_000)
    assert not admitted(harness.post(ev.Woken(), after_s=MAX_WAIT_S - 1))
    assert admitted(harness.post(ev.Woken(), after_s=PERIOD_S)) == ["p2"]
    assert harness.core.state.calls["c2"].phase is Phase.SENT, "also if p2 is paused after that call"


def test_a_program_too_large_for_the_rule_gets_an_engine_of_its_own() -> None:
    harness = Harness("thunderagent")
    assert admitted(harness.arrive(harness.open(), CAPACITY - 10)) == ["p1"]


def test_programs_of_a_lost_engine_are_held_and_resumed_elsewhere() -> None:
    harness = Harness("thunderagent")
    harness.arrive(harness.open(), 3_000)
    harness.post(ev.EngineLost(engine="e0"))
    harness.post(ev.EngineAttached(engine="e1", capacity_tokens=CAPACITY, block_tokens=16))
    assert admitted(tick(harness)) == ["p1"]
