"""No policy beats a bound: runs of the simulator, read from their logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from agentsched.core import POLICY_NAMES, Core, make_policy
from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.log import Entry
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.cost import CostProfile
from agentsched.engines.simulated import simulated
from agentsched.workloads.bounds import (
    BoundsError,
    call_seconds_of_run,
    calls_of_run,
    makespan_bound,
    packing_bound_reclaiming,
    recompute_bound_of_run,
)
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.generate.synthetic import synthetic_scripts
from agentsched.workloads.scripts import Piece, Script, Turn
from agentsched.workloads.simulator import SimulatedEngine, Simulation
from agentsched.workloads.stepwise import StepwiseEngine
from agentsched.workloads.summary import summarise

PROFILE = CostProfile(
    step_s=2e-3, prefill_token_s=1e-3, decode_row_s=3e-4, attention_s=1e-8, context_token_s=1e-8
)


PREFIX = (Piece("system", 100), Piece("tools", 80))
CHUNK = 512


def scripts_with_a_prefix(seed: int = 1, programs: int = 8) -> list[Script]:
    plain = synthetic_scripts(
        seed, programs, calls=6, first_tokens=400, new_tokens=120, output_tokens=20, gap_s=0.6
    )
    return [Script(s.program, 0.0, s.turns, prefix=PREFIX) for s in plain]


def analytic(kv_tokens: int, *, host_tokens: int = 0) -> SimulatedEngine:
    return AnalyticEngine(PROFILE, kv_tokens, chunk_tokens=CHUNK, max_running=64, host_tokens=host_tokens)


def stepwise(kv_tokens: int) -> SimulatedEngine:
    return StepwiseEngine(simulated(PROFILE, kv_tokens, name="e0", chunk_tokens=CHUNK, max_running=64))


def simulate(
    policy: str, engine: SimulatedEngine, scripts: list[Script], concurrency: int | None = None
) -> list[Entry]:
    core = Core(make_policy(policy))
    return Simulation(core, [engine], scripts, Conditions(concurrency=concurrency)).run()


def recomputed_tokens(entries: list[Entry]) -> int:
    return sum(e.event.recomputed_tokens for e in entries if isinstance(e.event, ev.CallFinished))


def alone(scripts: list[Script]) -> dict[str, list[float]]:
    """Each call's seconds on an engine of its own, the shared prefix held already."""
    seconds = {}
    for script in scripts:
        first = Script("first", 0.0, (Turn(181, 1, 0.0),), prefix=PREFIX)
        entries = simulate("fcfs-lru", analytic(100_000), [first, replace(script, arrives_s=10.0)])
        seconds[script.program] = call_seconds_of_run(entries)[script.program]
    return seconds


@pytest.mark.parametrize("make", [analytic, stepwise])
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_no_policy_recomputes_less_than_the_bound(
    policy: str, make: Callable[[int], SimulatedEngine]
) -> None:
    scripts = scripts_with_a_prefix()
    entries = simulate(policy, make(2_400), scripts)
    assert recompute_bound_of_run(entries, scripts) <= recomputed_tokens(entries)
    assert recompute_bound_of_run(simulate(policy, make(100_000), scripts), scripts) == 0


@pytest.mark.parametrize("kv_tokens", [1_600, 2_400, 3_600])
def test_lru_under_pressure_is_above_a_bound_above_zero(kv_tokens: int) -> None:
    scripts = scripts_with_a_prefix()
    entries = simulate("fcfs-lru", stepwise(kv_tokens), scripts)
    assert 0 < recompute_bound_of_run(entries, scripts) < recomputed_tokens(entries)


def test_host_memory_is_room_too() -> None:
    scripts = scripts_with_a_prefix()
    entries = simulate("fcfs-lru", analytic(2_400, host_tokens=9_600), scripts)
    assert [engine.capacity_tokens for engine in calls_of_run(entries, scripts)] == [12_000]
    assert recompute_bound_of_run(entries, scripts) <= recomputed_tokens(entries)


def test_without_scripts_contexts_are_guessed_from_sizes() -> None:
    scripts = [replace(script, prefix=()) for script in scripts_with_a_prefix()]
    entries = simulate("fcfs-lru", stepwise(2_400), scripts)
    assert recompute_bound_of_run(entries) == recompute_bound_of_run(entries, scripts) > 0


def entries_of(*events: ev.AnyEvent | de.AnyDecision) -> list[Entry]:
    return [
        Entry(now=float(at), event=item)
        if isinstance(item, ev.Event)
        else Entry(now=float(at), decision=item)
        for at, item in enumerate(events)
    ]


def test_a_log_gives_each_call_to_the_engine_that_it_was_sent_to() -> None:
    admit = de.Admit(cause=0, epoch=1, seq=0, program="p", engine="e1")
    report = ev.StepReport(engine="e1", free_tokens=0, evictable_tokens=0)
    (first, second) = calls_of_run(
        entries_of(
            ev.EngineAttached(engine="e0", capacity_tokens=64, block_tokens=16),
            ev.EngineAttached(engine="e1", capacity_tokens=32, block_tokens=16, host_capacity_tokens=16),
            ev.CallArrived(call="c", program="p", prompt_tokens=10, max_output_tokens=5),
            admit,
            ev.CallStarted(call="c", cached_tokens=0),
            ev.CallFinished(call="c", prompt_tokens=10, cached_tokens=0, output_tokens=5),
            report,
            report,
            ev.CallArrived(call="d", program="p", prompt_tokens=20, max_output_tokens=5),
            ev.CallStarted(call="d", cached_tokens=0),
            ev.StepReport(engine="e1", free_tokens=0, evictable_tokens=0, preempted=("p",)),
            ev.CallAborted(call="d", reason="client gone"),
        )
    )
    assert (first.calls, second.capacity_tokens) == ((), 48)
    c, d = second.calls
    assert (c.start_s, c.end_s, c.ended, c.holds) == (4.0, 5.0, True, True)
    assert (d.start_s, d.end_s, d.ended, d.holds) == (9.0, 11.0, False, False)
    assert [piece.tokens for piece in (*c.prompt, *c.context, *d.prompt)] == [10, 15, 20]
    assert d.prompt[0].key == c.prompt[0].key


def test_a_script_that_is_not_the_logs_is_said() -> None:
    scripts = scripts_with_a_prefix()
    entries = simulate("fcfs-lru", analytic(4_000), scripts)
    other = [replace(s, turns=(replace(s.turns[0], new_tokens=401), *s.turns[1:])) for s in scripts]
    with pytest.raises(BoundsError, match="prompt has 400 tokens"):
        calls_of_run(entries, other)


@pytest.mark.parametrize("concurrency", [None, 3, 6])
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_no_policy_is_faster_than_the_bounds(policy: str, concurrency: int | None) -> None:
    kv_tokens, scripts = 2_400, scripts_with_a_prefix()
    seconds = alone(scripts)
    entries = simulate(policy, analytic(kv_tokens), scripts, concurrency)
    run = summarise(entries, policy=policy, seed=0, engine="analytic")
    bound = makespan_bound(
        scripts,
        1,
        PROFILE,
        capacity_tokens=kv_tokens,
        uncontended=seconds,
        concurrency=concurrency,
        chunk_tokens=CHUNK,
        max_running=64,
    )
    packed = packing_bound_reclaiming(scripts, kv_tokens, seconds, reload_token_s=PROFILE.prefill_token_s)
    assert bound.mean_tct_s <= run.tct_s.mean
    assert run.tasks_per_hour <= 3600 * len(scripts) / bound.makespan_s
    assert run.tasks_per_hour <= packed.tasks_per_hour
