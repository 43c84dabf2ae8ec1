"""How much fits in an hour and how soon all is done, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentsched.engines.cost import CostProfile
from agentsched.workloads.bounds import (
    BoundsError,
    MakespanBound,
    makespan_bound,
    packing_bound,
    packing_bound_reclaiming,
)
from agentsched.workloads.scripts import Piece, Script, Turn

PROFILE = CostProfile(
    step_s=2e-3, prefill_token_s=1e-3, decode_row_s=3e-4, attention_s=1e-8, context_token_s=1e-8
)


def steady(program: str, *, prefix: tuple[Piece, ...] = (), gap_s: float = 8.0) -> Script:
    """Two calls of 1,000 and 1,200 tokens, the second after 100 tokens of output and ``gap_s``."""
    return Script(program, 0.0, (Turn(1_000, 100, gap_s), Turn(100, 1, 0.0)), prefix=prefix)


def test_the_packing_bound_is_capacity_over_mean_token_seconds() -> None:
    scripts = [steady("a"), steady("b")]
    bound = packing_bound(scripts, 10_000, {"a": [1.0, 2.0], "b": [1.0, 2.0]})
    each = 1_000 * 1 + 1_100 * 8 + 1_200 * 2
    assert bound.token_seconds == each
    assert bound.tasks_per_hour == pytest.approx(3600 * 10_000 / each)
    assert packing_bound(scripts, 10_000, {"a": [1, 2], "b": [1, 2]}, engines=3).tasks_per_hour == (
        pytest.approx(3 * bound.tasks_per_hour)
    )


def test_a_prefix_that_all_share_is_taken_off_capacity_once() -> None:
    scripts = [steady(name, prefix=(Piece("system", 300), Piece("tools", 500))) for name in "abcdefghijklmn"]
    bound = packing_bound(scripts, 2_000, {script.program: [1.0, 2.0] for script in scripts})
    each = 200 * 1 + 300 * 8 + 400 * 2
    assert bound.token_seconds == each
    assert bound.tasks_per_hour == pytest.approx(3600 * (2_000 - 800) / each)


def test_a_prefix_is_held_no_longer_than_those_who_share_it_need() -> None:
    shared = [steady(name, prefix=(Piece("system", 800),)) for name in "ab"]
    scripts = [*shared, *(steady(f"plain{n}") for n in range(20))]
    seconds = {script.program: [1.0, 2.0] for script in scripts}
    bound = packing_bound(scripts, 10_000, seconds)
    assert bound.shared_token_seconds == pytest.approx(800 * 11), "as long as one program lives"


def test_a_gap_lasts_as_long_as_the_agents_that_it_starts() -> None:
    parent = Script("parent", 0.0, (Turn(1_000, 1, 2.0, agents=("child",)), Turn(1, 1, 0.0)))
    child = Script("child", 0.0, (Turn(10, 1, 5.0), Turn(1, 1, 0.0)))
    bound = packing_bound([parent, child], 10_000, {"parent": [0.0, 0.0], "child": [1.0, 1.0]})
    assert bound.token_seconds == pytest.approx((1_001 * 7 + (10 * 1 + 11 * 5 + 12 * 1)) / 2)


def test_long_gaps_are_worth_no_more_than_their_reload() -> None:
    seconds = {"a": [1.0, 2.0]}
    kept = packing_bound([steady("a")], 10_000, seconds)
    # Of 1,100 tokens each takes 5 ms: at 1,200 tokens held meanwhile, 6 token-seconds instead of 8.
    freed = packing_bound_reclaiming([steady("a")], 10_000, seconds, reload_token_s=5e-3)
    assert freed.makespan_s == pytest.approx((1_000 * 1 + 1_100 * 6 + 1_200 * 2) / 10_000)
    short = packing_bound_reclaiming([steady("a", gap_s=0.1)], 10_000, seconds, reload_token_s=5e-3)
    assert short.makespan_s == pytest.approx(
        packing_bound([steady("a", gap_s=0.1)], 10_000, seconds).makespan_s
    )
    assert kept.makespan_s > freed.makespan_s


def test_reloading_everything_is_bound_by_computing() -> None:
    scripts = [steady(f"p{n}", gap_s=1_000.0) for n in range(10)]
    seconds = {script.program: [1.0, 2.0] for script in scripts}
    free = packing_bound_reclaiming(scripts, 10_000, seconds, reload_token_s=5e-3)
    paid = packing_bound_reclaiming(scripts, 10_000, seconds, reload_token_s=5e-3, reload_work_s=5e-3)
    # Kept for a share f of the tokens, memory asks for 10 - 6.6 f + 1,100 f seconds, computing for
    # 55 (1 - f): the two meet at f = 45 / 1,148.4.
    best = 55 * (1 - 45 / 1_148.4)
    assert free.makespan_s == pytest.approx(10)
    assert 0.99 * best <= paid.makespan_s <= best


@pytest.mark.parametrize(
    ("seconds", "capacity", "message"),
    [
        ({"a": [1.0]}, 10_000, "has 1 calls, the script has 2"),
        ({}, 10_000, "has 0 calls"),
        ({"a": [1.0, float("nan")]}, 10_000, "must be finite"),
        ({"a": [1.0, 2.0]}, 1_100, "over the capacity"),
        ({"a": [1.0, 2.0]}, 0, "capacity_tokens"),
    ],
)
def test_what_cannot_be_packed_is_said(seconds: dict[str, list[float]], capacity: int, message: str) -> None:
    with pytest.raises(BoundsError, match=message):
        packing_bound([steady("a")], capacity, seconds)


def test_agents_in_a_ring_and_short_prompts_are_said() -> None:
    ring = Script("a", 0.0, (Turn(10, 1, 0.0, agents=("a",)), Turn(1, 1, 0.0)))
    with pytest.raises(BoundsError, match="starts itself"):
        packing_bound([ring], 100, {"a": [0.0, 0.0]})
    with pytest.raises(BoundsError, match="prefix of 2000 tokens"):
        packing_bound([steady("a", prefix=(Piece("system", 2_000),))], 10_000, {"a": [1.0, 2.0]})
    with pytest.raises(BoundsError, match="no scripts"):
        packing_bound([], 100, {})


# Makespan


def test_the_makespan_is_bound_by_what_is_scarce() -> None:
    scripts = [steady(f"p{n}") for n in range(10)]
    seconds = {script.program: [1.0, 2.0] for script in scripts}

    def bound(**options: int) -> MakespanBound:
        values = {"engines": 1, "capacity_tokens": 1_000_000, **options}
        return makespan_bound(scripts, profile=PROFILE, uncontended=seconds, **values)

    roomy = bound(engines=100)
    assert roomy.makespan_s == roomy.longest_s == roomy.mean_tct_s == 11
    busy = bound()
    # Prefilled tokens (the last one of an output among them) take 1 ms, decoded rows 0.3, attention little.
    rows = 1_000 + 101 + 99 * 0.3
    assert busy.makespan_s == pytest.approx(busy.work_s, rel=0.02) == pytest.approx(rows / 100, rel=0.02)
    assert bound(concurrency=2).makespan_s == bound(concurrency=2).slots_s == 55
    tight = bound(capacity_tokens=1_300)
    assert tight.makespan_s == tight.memory_s > busy.makespan_s
    assert bound(chunk_tokens=100).work_s == pytest.approx(busy.work_s + 110.1 * PROFILE.step_s)


def test_in_a_closed_loop_a_program_does_not_wait_for_those_before_it() -> None:
    scripts = [steady(f"p{n}") for n in range(10)]
    seconds = {script.program: [1.0, 2.0] for script in scripts}
    closed, open_ = (
        makespan_bound(
            scripts,
            1,
            PROFILE,
            capacity_tokens=1_300,
            uncontended=seconds,
            concurrency=concurrency,
            reload_token_s=1.0,
            reload_work_s=1.0,
        )
        for concurrency in (2, None)
    )
    each = (1_000 * 1 + 1_100 * 8 + 1_200 * 2) / 1_300
    ends = [11.0, *(k * each for k in range(2, 11))]  # the first one is bound by its own life
    assert open_.mean_tct_s == pytest.approx(sum(ends) / 10)
    assert closed.mean_tct_s == pytest.approx((9 + 10) * each / 10)
    assert open_.memory_s == closed.memory_s == pytest.approx(10 * each)


def test_a_closed_loop_begins_at_zero() -> None:
    late = replace(steady("a"), arrives_s=1.0)
    with pytest.raises(BoundsError, match="arrives late"):
        makespan_bound(
            [late], 1, PROFILE, capacity_tokens=10_000, uncontended={"a": [1.0, 2.0]}, concurrency=1
        )
