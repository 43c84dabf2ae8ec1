"""The gap model: laws that hold for any input, numbers that a reader would compute, and calibration."""

from __future__ import annotations

import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.graphs.predict import ENOUGH, FEW, PRIOR_GAPS_S, GapModel
from agentsched.graphs.samples import KeyedWindows

seconds = st.floats(min_value=0.0, max_value=1e6)
gaps = st.lists(st.tuples(st.sampled_from(["bash", "grep", ""]), seconds), max_size=150)
garbage = st.sampled_from([math.inf, -math.inf, math.nan, -1.0, -1e-9, 1e300])


def gap_model(observed: list[tuple[str, float]]) -> GapModel:
    model = GapModel()
    for tool, gap_s in observed:
        model.observe(tool, gap_s)
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


def test_gaps_fall_back_from_command_to_tool_to_pool_to_prior() -> None:
    model = GapModel()
    assert tuple(model.samples("bash:pytest")) == PRIOR_GAPS_S
    for i in range(FEW):
        model.observe("grep", float(i))
    assert list(model.samples("bash:pytest")) == [0, 1, 2]
    for _ in range(FEW):
        model.observe("bash:git", 9.0)
    assert list(model.samples("bash:pytest")) == [9, 9, 9]
    for _ in range(FEW):
        model.observe("bash:pytest", 7.0)
    assert list(model.samples("bash:pytest")) == [7, 7, 7]
    assert list(model.samples("bash")) == [7, 7, 7, 9, 9, 9]


def test_a_tool_remembers_its_last_hundred_gaps() -> None:
    model = gap_model([("bash", 500.0)] * 50 + [("bash", float(i)) for i in range(100)])
    assert list(model.samples("bash")) == [float(i) for i in range(100)]


def test_gap_numbers_by_hand() -> None:
    model = gap_model([("bash", s) for s in (1.0, 2.0, 3.0, 4.0, 10.0)])
    assert model.probability_within("bash", 3.0) == 0.6
    assert model.mean_remaining_s("bash", 0.0) == 4.0
    # two samples outlast 3 s, the pool's two fill up, one is the tail of Pareto index 1.5
    tail = 1 - (3 / 4) ** 1.5
    assert model.probability_within("bash", 4.0, elapsed_s=3.0) == pytest.approx((2 + tail) / 5)
    assert model.mean_remaining_s("bash", 3.0) == pytest.approx((2 * 4 + 2 * 10 + 9) / 5 - 3)
    assert model.probability_within("bash", 40.0, elapsed_s=20.0) == pytest.approx(1 - 0.5**1.5)
    assert model.mean_remaining_s("bash", 20.0) == pytest.approx(40.0)


@given(gaps, seconds)
def test_samples_beyond_outlast_what_has_passed(observed: list[tuple[str, float]], elapsed: float) -> None:
    model = gap_model(observed)
    beyond = model.samples_beyond("bash", elapsed)
    assert len(beyond) >= min(ENOUGH, 1 + len(observed))
    assert beyond == sorted(beyond)
    assert all(math.isfinite(gap) and (gap > elapsed or elapsed == 0) for gap in beyond)


def test_samples_beyond_stand_for_the_probabilities() -> None:
    model = GapModel()
    for i in range(40):
        model.observe("bash:pytest", 1.0 + i)
        model.observe("bash:git", 0.1 * i)
    for elapsed in (0.0, 2.0, 20.0, 38.0, 100.0):
        beyond = model.samples_beyond("bash:pytest", elapsed)
        for tau in (1.0, 5.0, 30.0, 60.0, 300.0):
            share = sum(gap <= tau for gap in beyond) / len(beyond)
            expected = model.probability_within("bash:pytest", tau, elapsed)
            assert share == pytest.approx(expected, abs=0.2 if elapsed > 35 else 0.06)


@pytest.mark.parametrize("elapsed_s", [0.0, 0.5, 2.0, 8.0, 30.0])
def test_gap_probabilities_are_calibrated(elapsed_s: float) -> None:
    """Three tools of known, different laws; each prediction is made before its gap is learned. The
    tolerance of 0.05 is what 600 and more gaps a bin leave to chance (three standard errors)."""
    rng = random.Random(7)
    laws = {
        "bash:git": lambda: rng.expovariate(1 / 0.5),
        "bash:pytest": lambda: rng.lognormvariate(1.5, 1.2),
        "task": lambda: 10.0 * rng.paretovariate(1.5),
    }
    model = GapModel()
    bins: dict[int, list[tuple[float, bool]]] = {}
    for number in range(9_000):
        tool = rng.choice(sorted(laws))
        gap_s = laws[tool]()
        if number > 300 and gap_s > elapsed_s:
            for factor in (1.0, 2.0, 4.0):
                tau_s = max(elapsed_s, 0.5) * factor
                if tau_s > elapsed_s:
                    predicted = model.probability_within(tool, tau_s, elapsed_s)
                    bins.setdefault(min(4, int(predicted * 5)), []).append((predicted, gap_s <= tau_s))
        model.observe(tool, gap_s)
    judged = [pairs for pairs in bins.values() if len(pairs) >= 600]
    assert judged
    for pairs in judged:
        predicted = sum(p for p, _ in pairs) / len(pairs)
        came = sum(back for _, back in pairs) / len(pairs)
        assert predicted == pytest.approx(came, abs=0.05)


def test_tool_names_from_outside_cannot_fill_memory() -> None:
    model = gap_model([(f"tool-{i}", 1.0) for i in range(KeyedWindows.MOST_KEYS * 2)])
    assert len(model.dump().by_key) == KeyedWindows.MOST_KEYS
    long = gap_model([("x" * 1_000_000 + str(i), 1.0) for i in range(3)])
    assert max(map(len, long.dump().by_key)) == 200


def test_a_gap_of_weeks_is_learned_as_a_long_one() -> None:
    model = gap_model([("bash", 1.0)] * 4 + [("bash", 1e11)])
    assert model.mean_remaining_s("bash", 0.0) == pytest.approx((4 + 1e6) / 5)


@given(garbage)
def test_garbage_is_refused_and_changes_nothing(bad: float) -> None:
    gap = GapModel()
    for call in (
        lambda: gap.observe("bash", bad),
        lambda: gap.probability_within("bash", bad),
        lambda: gap.probability_within("bash", 1.0, bad),
        lambda: gap.mean_remaining_s("bash", bad),
        lambda: gap.samples_beyond("bash", bad),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()
    assert tuple(gap.samples("bash")) == PRIOR_GAPS_S


def test_queries_stay_cheap_with_full_windows() -> None:
    model = gap_model([("bash", float(i % 97)) for i in range(500)])
    started = time.perf_counter()
    for i in range(10_000):
        model.probability_within("bash", float(i % 50), 1.0)
        model.mean_remaining_s("bash", 1.0)
    assert time.perf_counter() - started < 5.0
