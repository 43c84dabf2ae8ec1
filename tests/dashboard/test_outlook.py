"""What the core expects: told right, and without touching the core."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.core.forecast import Forecast, predicted_peak
from agentsched.core.outlook import outlooks, overflow_calls, waits
from agentsched.core.snapshot import freeze
from agentsched.workloads.simulate import Options
from agentsched.workloads.watched import Watched

CROWD = Options(traces=("gen:saga-swe",), kv_tokens=120_000, concurrency=12, programs=40)

forecasts = st.lists(
    st.builds(Forecast, st.integers(0, 50_000), st.floats(0, 4_000), st.floats(1, 60, allow_subnormal=False)),
    min_size=1,
    max_size=8,
)


def need_after(calls: float, ahead: list[Forecast]) -> float:
    return sum(f.now_tokens + f.growth_tokens * calls for f in ahead if f.calls_left >= calls)


@given(forecasts, st.floats(0.05, 0.95))
def test_the_need_exceeds_the_bound_from_the_moment_that_is_told(ahead: list[Forecast], share: float) -> None:
    ordered = sorted(ahead, key=lambda f: -f.calls_left)
    bound = share * predicted_peak(ordered)
    calls = overflow_calls(ordered, bound)
    assert need_after(calls, ordered) >= bound - 1e-6 * (1 + bound)
    earlier = [calls * at / 20 for at in range(20) if calls > 0]
    assert all(need_after(at, ordered) <= bound * (1 + 1e-9) + 1e-6 for at in earlier)


@pytest.fixture(scope="module")
def crowded() -> Watched:
    """Twelve programs where a few fit."""
    run = Watched(CROWD)
    run.run_to(120.0)
    return run


def test_asking_changes_nothing(crowded: Watched) -> None:
    before = freeze(crowded.core)
    outlooks(crowded.core)
    waits(crowded.core)
    assert freeze(crowded.core) == before


def test_a_full_engine_is_told_as_it_is(crowded: Watched) -> None:
    (seen,) = outlooks(crowded.core)
    seated = crowded.core.state.seats["e0"]
    assert seen.need_tokens >= sum(p.context_tokens - p.shared_tokens for p in seated.values()) > 0
    assert seen.peak.tokens >= seen.need_tokens
    assert seen.peak.calls >= 1
    assert seen.bound_tokens is not None


def test_everybody_who_waits_is_told_why(crowded: Watched) -> None:
    told = {wait.program: wait for wait in waits(crowded.core)}
    assert told.keys() == crowded.core.state.queue.keys()
    refused = [wait for wait in told.values() if wait.cause in ("now", "peak")]
    assert len(refused) == 1, "one holds up the others"
    assert refused[0].need_tokens > refused[0].bound_tokens
    assert {wait.behind for wait in told.values() if wait.cause == "line"} == {refused[0].program}


def test_a_policy_that_predicts_nothing_is_seen_heading_for_the_cliff() -> None:
    core = Core(make_policy("fcfs-lru"))
    core.handle(0.0, ev.EngineAttached(engine="e", capacity_tokens=1_000, block_tokens=16))
    for number in range(3):
        name = f"p{number}"
        core.handle(1.0, ev.ProgramOpened(program=name))
        call = ev.CallArrived(call=name, program=name, prompt_tokens=600, max_output_tokens=10)
        core.handle(1.0, call)
    (seen,) = outlooks(core)
    assert seen.need_tokens == 1_800
    assert seen.bound_tokens is None
    assert seen.peak.tokens > seen.room_tokens


def test_without_an_engine_that_is_what_is_waited_for() -> None:
    core = Core(make_policy("agentsched"))
    core.handle(0.0, ev.ProgramOpened(program="p"))
    core.handle(0.0, ev.CallArrived(call="c", program="p", prompt_tokens=10, max_output_tokens=10))
    assert [(wait.program, wait.cause) for wait in waits(core)] == [("p", "engine")]
