"""The simulator drives the core and a simulated engine in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import mean

import pytest

from agentsched.core import POLICY_NAMES, Core, make_policy
from agentsched.core import events as ev
from agentsched.core import log as event_log
from agentsched.core.log import Entry
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.cost import CostProfile
from agentsched.engines.simulated import simulated
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.generate.synthetic import synthetic_scripts
from agentsched.workloads.simulator import SimulatedEngine, Simulation
from agentsched.workloads.stepwise import StepwiseEngine
from tests.core.cut_logs import check_each_file_replays

PROFILE = CostProfile(
    step_s=2e-3, prefill_token_s=1e-3, decode_row_s=3e-4, attention_s=1e-8, context_token_s=1e-7
)


def analytic(kv_tokens: int, host_tokens: int = 0) -> SimulatedEngine:
    return AnalyticEngine(PROFILE, kv_tokens, host_tokens=host_tokens, chunk_tokens=512, max_running=64)


def stepwise(kv_tokens: int, host_tokens: int = 0) -> SimulatedEngine:
    return StepwiseEngine(
        simulated(PROFILE, kv_tokens, host_tokens=host_tokens, name="e0", chunk_tokens=512, max_running=64)
    )


def run(
    policy: str,
    *,
    kv_tokens: int,
    engine: Callable[[int], SimulatedEngine] = analytic,
    programs: int = 10,
    seed: int = 1,
) -> list[Entry]:
    scripts = synthetic_scripts(
        seed, programs, calls=6, first_tokens=400, new_tokens=120, output_tokens=20, gap_s=0.3
    )
    core = Core(make_policy(policy))
    return Simulation(core, [engine(kv_tokens)], scripts, Conditions(check=True, seed=seed)).run()


def completion_times_s(entries: list[Entry]) -> list[float]:
    opened = {e.event.program: e.now for e in entries if isinstance(e.event, ev.ProgramOpened)}
    closed = {e.event.program: e.now for e in entries if isinstance(e.event, ev.ProgramClosed)}
    assert set(opened) == set(closed), "every program comes to its end"
    return [closed[name] - opened[name] for name in opened]


def recomputed_tokens(entries: list[Entry]) -> int:
    return sum(e.event.recomputed_tokens for e in entries if isinstance(e.event, ev.CallFinished))


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_run_ends_and_is_the_same_every_time(policy: str) -> None:
    first = run(policy, kv_tokens=4_000)
    assert len(completion_times_s(first)) == 10
    assert first == run(policy, kv_tokens=4_000)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_the_log_of_a_run_replays(policy: str) -> None:
    entries = run(policy, kv_tokens=4_000)
    header = event_log.Header(agentsched="test", policy=policy, epoch=1, started_unix_s=0.0)
    lines = [event_log.encode(header), *(event_log.encode(entry) for entry in entries)]
    assert all(before == after for before, after in event_log.replay(lines))
    assert check_each_file_replays(policy, entries, every=40) > 5


def test_under_pressure_ours_recomputes_less_and_finishes_sooner_than_lru() -> None:
    lru, ours = (run(policy, kv_tokens=4_000) for policy in ("fcfs-lru", "agentsched"))
    assert recomputed_tokens(lru) > 5 * recomputed_tokens(ours)
    assert mean(completion_times_s(lru)) > 1.1 * mean(completion_times_s(ours))


def test_without_pressure_ours_costs_nothing() -> None:
    lru, ours = (run(policy, kv_tokens=250_000) for policy in ("fcfs-lru", "agentsched"))
    assert recomputed_tokens(lru) == recomputed_tokens(ours) == 0
    assert mean(completion_times_s(ours)) == pytest.approx(mean(completion_times_s(lru)), rel=0.01)


@pytest.mark.parametrize("policy", ["fcfs-lru", "continuum", "agentsched"])
def test_without_eviction_the_analytic_engine_is_the_stepwise_one_to_the_microsecond(policy: str) -> None:
    fast, real = (
        completion_times_s(run(policy, kv_tokens=200_000, engine=kind)) for kind in (analytic, stepwise)
    )
    assert fast == pytest.approx(real, abs=1e-6)


@pytest.mark.parametrize(
    ("policy", "kv_tokens", "host_tokens"),
    [
        ("fcfs-lru", 2_500, 0),
        ("fcfs-lru", 8_000, 0),
        ("continuum", 4_000, 0),
        ("agentsched", 4_000, 0),
        ("fcfs-lru", 4_000, 4_000),
        ("fcfs-lru", 4_000, 16_000),
    ],
)
def test_under_pressure_the_analytic_engine_tells_what_the_stepwise_one_does(
    policy: str, kv_tokens: int, host_tokens: int
) -> None:
    """Ties of eviction fall differently, so programs differ; means and recomputation hardly do."""
    fast, real = (
        run(policy, kv_tokens=kv_tokens, engine=partial(kind, host_tokens=host_tokens), programs=12)
        for kind in (analytic, stepwise)
    )
    assert mean(completion_times_s(fast)) == pytest.approx(mean(completion_times_s(real)), rel=0.05)
    assert recomputed_tokens(fast) == pytest.approx(recomputed_tokens(real), rel=0.15)
