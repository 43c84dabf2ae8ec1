"""What tools tell of their progress, and what follows for the end of a gap."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.graphs.predict import ProgressModel
from agentsched.graphs.progress import PRIOR_RATIOS


def median(samples: list[float]) -> float:
    return samples[len(samples) // 2]


def test_at_first_tools_are_taken_to_go_on_as_they_did() -> None:
    assert median(ProgressModel().durations_s(0.3, 6.0)) == pytest.approx(20.0, rel=0.1)


def test_what_has_hardly_begun_tells_nothing() -> None:
    model = ProgressModel()
    assert model.durations_s(0.0, 5.0) == []
    model.observe([(0.0, 5.0)], 100.0)
    assert model.durations_s(0.5, 5.0) == ProgressModel().durations_s(0.5, 5.0)


def test_it_learns_that_the_end_takes_longer_than_the_beginning() -> None:
    model = ProgressModel()
    for _ in range(20):
        model.observe([(0.3, 3.0), (0.9, 9.0)], 40.0)
    assert median(model.durations_s(0.3, 3.0)) == pytest.approx(40.0)
    assert median(model.durations_s(0.6, 6.0)) == pytest.approx(10.0, rel=0.1), (
        "nothing was told of that quarter"
    )


def test_it_is_calibrated() -> None:
    rng, model, inside = Random(0), ProgressModel(), 0
    for number in range(2_000):
        true_s, at = rng.uniform(5, 500), rng.uniform(0.1, 0.9)
        told = min(1.0, at * rng.lognormvariate(0.2, 0.3))
        samples = model.durations_s(told, at * true_s)
        if number >= 500:
            inside += samples[1] <= true_s <= samples[-2]
        model.observe([(told, at * true_s)], true_s)
    assert inside / 1_500 == pytest.approx(10 / 16, abs=0.05), "between the second and the seventh of eight"


@given(st.floats(0.0, 1.0), st.floats(0.0, 1e6))
def test_no_tool_ends_before_now(fraction: float, elapsed_s: float) -> None:
    samples = ProgressModel().durations_s(fraction, elapsed_s)
    assert len(samples) in (0, len(PRIOR_RATIOS))
    assert samples == sorted(samples)
    assert all(sample >= elapsed_s for sample in samples)


@pytest.mark.parametrize("pair", [(1.5, 1.0), (-0.1, 1.0), (0.5, float("nan"))])
def test_garbage_is_refused(pair: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be between"):
        ProgressModel().observe([pair], 10.0)
