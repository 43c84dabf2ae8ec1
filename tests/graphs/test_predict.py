"""Predictors: laws that hold for any input, and the numbers that a reader would compute by hand."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.graphs.predict import FEW, PRIOR_GAPS_S, ContextModel, GapModel

seconds = st.floats(min_value=0.0, max_value=1e6)
gaps = st.lists(st.tuples(st.sampled_from(["bash", "grep", ""]), seconds), max_size=150)
ended = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 100_000), st.integers(0, 200_000)), max_size=12)
garbage = st.sampled_from([math.inf, -math.inf, math.nan, -1.0, -1e-9, 1e300])


def gap_model(observed: list[tuple[str, float]]) -> GapModel:
    model = GapModel()
    for tool, gap_s in observed:
        model.observe(tool, gap_s)
    return model


def context_model(programs: list[tuple[int, int, int]]) -> ContextModel:
    model = ContextModel()
    for calls, first, final in programs:
        model.observe_program(calls=calls, first_prompt_tokens=first, final_tokens=final)
    return model


@given(gaps, seconds, seconds, seconds)
def test_probability_is_one_and_rises_with_tau(
    observed: list[tuple[str, float]], a: float, b: float, elapsed: float
) -> None:
    model = gap_model(observed)
    low, high = (model.probability_within("bash", tau, elapsed) for tau in sorted((a, b)))
    assert 0.0 <= low <= high <= 1.0


@given(gaps, seconds)
def test_remaining_time_is_finite_and_not_negative(observed: list[tuple[str, float]], elapsed: float) -> None:
    remaining = gap_model(observed).mean_remaining_s("bash", elapsed)
    assert math.isfinite(remaining)
    assert remaining >= 0.0


@given(gaps)
def test_samples_are_sorted_and_never_empty(observed: list[tuple[str, float]]) -> None:
    samples = gap_model(observed).samples("bash")
    assert len(samples) > 0
    assert list(samples) == sorted(samples)


def test_gaps_fall_back_from_tool_to_pool_to_prior() -> None:
    model = GapModel()
    assert tuple(model.samples("bash")) == PRIOR_GAPS_S
    for i in range(FEW):
        model.observe("grep", float(i))
    model.observe("bash", 9.0)
    assert list(model.samples("bash")) == [0, 1, 2, 3, 4, 9]
    for _ in range(FEW - 1):
        model.observe("bash", 7.0)
    assert list(model.samples("bash")) == [7, 7, 7, 7, 9]


def test_a_tool_remembers_its_last_hundred_gaps() -> None:
    model = gap_model([("bash", 500.0)] * 50 + [("bash", float(i)) for i in range(100)])
    assert list(model.samples("bash")) == [float(i) for i in range(100)]


def test_gap_numbers_by_hand() -> None:
    model = gap_model([("bash", s) for s in (1.0, 2.0, 3.0, 4.0, 10.0)])
    assert model.probability_within("bash", 3.0) == 0.6
    assert model.probability_within("bash", 4.0, elapsed_s=2.0) == pytest.approx(2 / 3)
    assert model.mean_remaining_s("bash", 0.0) == 4.0
    assert model.mean_remaining_s("bash", 3.0) == 4.0
    assert model.probability_within("bash", 40.0, elapsed_s=20.0) == 0.75
    assert model.mean_remaining_s("bash", 20.0) == 20.0


def test_tool_names_from_outside_cannot_fill_memory() -> None:
    model = gap_model([(f"tool-{i}", 1.0) for i in range(GapModel.MAX_TOOLS * 2)])
    assert len(model._by_tool) == GapModel.MAX_TOOLS


@given(ended, st.integers(0, 100), st.integers(0, 300_000), st.integers(0, 300_000))
def test_final_context_is_never_below_the_present_one(
    programs: list[tuple[int, int, int]], done: int, now: int, first: int
) -> None:
    model = context_model(programs)
    final = model.expected_final_tokens(calls_done=done, tokens_now=now, first_prompt_tokens=first)
    assert math.isfinite(final)
    assert final >= now
    assert model.expected_calls_left(done) >= 1.0
    growth = model.growth_tokens_per_call(calls_done=done, tokens_now=now, first_prompt_tokens=first)
    assert growth >= 0.0


def test_before_any_ending_own_growth_and_twelve_calls_decide() -> None:
    model = ContextModel()
    assert model.expected_calls_left(0) == 12.0
    assert model.expected_calls_left(100) == 25.0
    fresh = model.expected_final_tokens(calls_done=0, tokens_now=1000, first_prompt_tokens=1000)
    assert fresh == 1000 + 12 * 1500
    slow = model.expected_final_tokens(calls_done=4, tokens_now=1040, first_prompt_tokens=1000)
    fast = model.expected_final_tokens(calls_done=4, tokens_now=5000, first_prompt_tokens=1000)
    assert 1040 < slow < fresh
    assert fast > 15_000


def test_learned_programs_replace_the_prior() -> None:
    model = context_model([(10, 1000, 6000)] * FEW)
    assert model.expected_calls_left(4) == 6.0
    assert model.growth_tokens_per_call(calls_done=0, tokens_now=1000, first_prompt_tokens=1000) == 500.0
    assert model.expected_final_tokens(calls_done=4, tokens_now=3000, first_prompt_tokens=1000) == 6000.0


def test_contexts_that_saturate_put_a_ceiling_on_growth() -> None:
    model = context_model([(100, 1000, 9000)] * FEW)
    assert model.expected_final_tokens(calls_done=10, tokens_now=8000, first_prompt_tokens=1000) == 9000.0
    past = model.expected_final_tokens(calls_done=10, tokens_now=10_000, first_prompt_tokens=1000)
    assert past == pytest.approx(10_500.0)


def test_old_programs_are_forgotten() -> None:
    model = context_model([(50, 0, 50_000)] * 10 + [(5, 0, 500)] * ContextModel.PROGRAMS)
    assert model.expected_calls_left(0) == 5.0
    assert model.growth_tokens_per_call(calls_done=0, tokens_now=0, first_prompt_tokens=0) == 100.0


@given(garbage)
def test_garbage_is_refused_and_changes_nothing(bad: float) -> None:
    gap, context = GapModel(), ContextModel()
    amount = bad  # a float where tokens are counted: what an untyped caller could pass
    for call in (
        lambda: gap.observe("bash", bad),
        lambda: gap.probability_within("bash", bad),
        lambda: gap.probability_within("bash", 1.0, bad),
        lambda: gap.mean_remaining_s("bash", bad),
        lambda: context.observe_program(calls=3, first_prompt_tokens=1, final_tokens=amount),  # type: ignore[arg-type]
        lambda: context.observe_program(calls=3, first_prompt_tokens=amount, final_tokens=1),  # type: ignore[arg-type]
        lambda: context.observe_program(calls=amount, first_prompt_tokens=1, final_tokens=1),  # type: ignore[arg-type]
        lambda: context.expected_calls_left(amount),  # type: ignore[arg-type]
        lambda: context.growth_tokens_per_call(calls_done=1, tokens_now=amount, first_prompt_tokens=1),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="must be"):
            call()
    assert tuple(gap.samples("bash")) == PRIOR_GAPS_S
    assert context.expected_calls_left(0) == 12.0


def test_a_program_without_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="calls must be >= 1"):
        ContextModel().observe_program(calls=0, first_prompt_tokens=1, final_tokens=1)


def test_queries_stay_cheap_with_full_windows() -> None:
    model = gap_model([("bash", float(i % 97)) for i in range(500)])
    started = time.perf_counter()
    for i in range(10_000):
        model.probability_within("bash", float(i % 50), 1.0)
        model.mean_remaining_s("bash", 1.0)
    assert time.perf_counter() - started < 5.0
