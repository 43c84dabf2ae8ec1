"""SAGA's characteristic decisions, on cases made by hand."""

from __future__ import annotations

import pytest

from agentsched.core import events as ev
from agentsched.core.decisions import Admit, AnyDecision, Pause, Rank, Retain
from agentsched.core.policies.engine_load import EngineLoads
from agentsched.core.policies.saga import CacheAffinity, score, tool_ttl_s
from agentsched.core.standing import worth_at
from agentsched.core.state import Program, State
from tests.core.harness import CAPACITY, Harness


def harness_with_gaps(*gaps_s: float) -> Harness:
    harness = Harness("saga")
    for gap_s in gaps_s:
        harness.core.state.gaps.observe("bash", gap_s)
    return harness


def last_retain(harness: Harness, program: str) -> Retain:
    orders = [e.decision for e in harness.entries if isinstance(e.decision, Retain)]
    return [order for order in orders if order.program == program][-1]


def ranks(decided: list[AnyDecision]) -> dict[str, float]:
    return {d.program: d.key for d in decided if isinstance(d, Rank)}


def attach(harness: Harness, engine: str, max_running: int = 64) -> list[AnyDecision]:
    return harness.post(
        ev.EngineAttached(engine=engine, capacity_tokens=CAPACITY, block_tokens=16, max_running=max_running)
    )


def test_the_score_weighs_recency_reuse_and_size_as_published() -> None:
    assert score(0.0, reuse=1.0, size=0.0) == 0.0
    assert score(150.0, reuse=0.6, size=0.5) == pytest.approx(0.3 * 0.5 + 0.5 * 0.4 + 0.2 * 0.5)
    assert score(1e6, reuse=0.0, size=2.0) == pytest.approx(1.0)


def test_the_ttl_is_the_tools_p95_shortened_by_pressure() -> None:
    assert tool_ttl_s(20.0, used=0.5) == 20.0
    assert tool_ttl_s(20.0, used=0.8) == pytest.approx(15.0)
    assert tool_ttl_s(20.0, used=0.9) == pytest.approx(10.0)
    assert tool_ttl_s(20.0, used=7.0) == tool_ttl_s(20.0, used=1.0)
    assert tool_ttl_s(10_000.0, used=0.0) == 300.0


def test_kv_is_protected_for_the_ttl_and_goes_by_score_after_it() -> None:
    harness = harness_with_gaps(*[2.0] * 19, 8.0)
    harness.arrive(harness.open(), 1_000)
    harness.run_call("p1")
    (segment,) = last_retain(harness, "p1").segments
    now = harness.now
    values = [worth_at(segment.device, now + away_s) for away_s in (0.0, 7.9, 8.1, 250.0, 1e4)]
    assert values[0] > values[1] > 1.0, "protected, and worth less with time"
    assert 1.0 > values[2] > values[3] > 0.0, "past the P95 of 8 s it stays only where nobody needs room"
    assert values[4] == 0.0


def test_what_is_likely_to_return_outlasts_what_is_not() -> None:
    harness = harness_with_gaps()
    for _ in range(10):
        harness.core.state.gaps.observe("quick", 3.0)
        harness.core.state.gaps.observe("slow", 280.0)
    for tool in ("quick", "slow"):
        program = harness.open()
        harness.arrive(program, 1_000)
        harness.run_call(program)
        harness.post(ev.ToolStarted(tool_call=f"t-c{harness.calls}", program=program, tool=tool))
    quick, slow = (last_retain(harness, name).segments[0].device for name in ("p1", "p2"))
    assert worth_at(quick, harness.now + 1.0) > worth_at(slow, harness.now + 1.0)


def test_kv_of_a_queued_call_is_worth_more_than_any_that_is_away() -> None:
    harness = harness_with_gaps(*[5.0] * 10)
    for _ in range(2):
        harness.arrive(harness.open(), 3_000)
    harness.run_call("p1")
    harness.run_call("p2")
    harness.now += 3.0
    harness.arrive("p2", 3_050)
    away, queued = (last_retain(harness, name).segments[0].device for name in ("p1", "p2"))
    assert worth_at(queued, harness.now + 0.1) > worth_at(away, harness.now + 0.1)


def test_a_program_stays_with_its_kv_until_that_engine_is_loaded() -> None:
    state, loads = State(), EngineLoads()
    placement = CacheAffinity(loads)
    for engine in ("e0", "e1"):
        event = ev.EngineAttached(engine=engine, capacity_tokens=CAPACITY, block_tokens=16, max_running=10)
        loads.observe(state, 0.0, event, state.apply(0.0, event))
    program = Program("p", "default", 1, 0.0, home="e0")
    loads.engines["e0"].running, loads.engines["e0"].tokens = 7, 9_000
    assert placement.candidates(state, program) == ["e0", "e1"]
    loads.engines["e0"].running = 8
    assert placement.candidates(state, program) == ["e1", "e0"]
    loads.engines["e1"].running = 9
    assert placement.candidates(state, program)[0] == "e0", "loaded everywhere: its KV decides"


def moves(decided: list[AnyDecision]) -> list[tuple[str, str]]:
    paused = {d.program for d in decided if isinstance(d, Pause)}
    return [(d.program, d.engine) for d in decided if isinstance(d, Admit) and d.program in paused]


def test_an_engine_with_less_than_half_the_load_steals_from_one_with_a_queue() -> None:
    harness = Harness("saga")
    for _ in range(3):
        harness.arrive(harness.open(), 2_000)
    harness.run_call("p1")
    assert harness.core.next_wakeup() is None, "there is nowhere to steal to"
    assert moves(attach(harness, "e1")) == [("p1", "e1")], "away, so it can move"
    harness.run_call("p2")
    assert not moves(harness.post(ev.Woken(), after_s=0.1)), "the thief waits for what it has stolen"


def test_an_engine_that_idles_for_100_ms_steals_from_one_with_a_queue() -> None:
    harness = Harness("saga")
    for _ in range(3):
        harness.arrive(harness.open(), 2_000)
    harness.run_call("p1")
    attach(harness, "e1")
    harness.arrive("p1", 2_100)
    harness.run_call("p2")
    harness.run_call("p1")  # e1 idles from here on, and has more than half the contexts of e0
    assert not moves(harness.post(ev.Woken(), after_s=0.05))
    wakeup_s = harness.core.next_wakeup()
    assert wakeup_s is not None
    assert moves(harness.post(ev.Woken(), after_s=wakeup_s - harness.now)) == [("p2", "e1")]
    assert harness.now == pytest.approx(0.1)


def test_nothing_is_stolen_while_nothing_queues() -> None:
    harness = Harness("saga")
    harness.arrive(harness.open(), 2_000)
    harness.run_call("p1")
    attach(harness, "e1")
    assert harness.core.next_wakeup() is None
    assert not [d for d in harness.post(ev.Woken(), after_s=1.0) if isinstance(d, Admit)]


def test_a_tenant_ahead_of_its_share_goes_after_one_behind() -> None:
    harness = Harness("saga")
    for name, tenant in (("a", "heavy"), ("b", "light")):
        harness.post(ev.ProgramOpened(program=name, tenant=tenant))
    for _ in range(3):
        harness.arrive("a", 1_000)
        harness.now += 10.0
        harness.advance(next(iter(harness.core.state.calls.values())))
        harness.now += 30.0
        harness.run_call("a")
    heavy = ranks(harness.arrive("a", 1_000))["a"]
    light = ranks(harness.arrive("b", 1_000))["b"]
    assert light < heavy, "both are due at the same time; one tenant had it all"


def test_without_tenants_or_deadlines_programs_go_by_arrival_and_cached_ones_first() -> None:
    harness = Harness("saga")
    first = ranks(harness.arrive(harness.open(), 1_000))["p1"]
    harness.now += 5.0
    second = ranks(harness.arrive(harness.open(), 1_000))["p2"]
    assert first < second
    harness.run_call("p2")
    held = ev.Held(program="p2", device_tokens=1_050)
    harness.post(ev.StepReport(engine="e0", free_tokens=5_000, evictable_tokens=0, held=(held,)))
    assert ranks(harness.arrive("p2", 1_100))["p2"] < first
