"""Fitting cost profiles: what an engine costs is found again from its steps, and profiles are files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.engines.contract import Sampling
from agentsched.engines.cost import PROFILES, CostProfile
from agentsched.engines.execution import Row, Sampled
from agentsched.engines.simulated import CostModelExecutor
from agentsched.workloads.fit import (
    Bench,
    Fit,
    Point,
    ProfileError,
    Shape,
    fit_profile,
    load_profile,
    measure,
    residuals,
    save_fit,
)

TRUE = CostProfile(
    step_s=3e-4, prefill_token_s=8e-6, decode_row_s=9e-5, attention_s=7e-9, context_token_s=3e-8
)


class Virtual:
    """An executor on a clock of its own: its steps take what the profile says, some of them longer."""

    num_blocks, block_tokens, vocabulary, max_context_tokens = 8192, 16, 512, 4200

    def __init__(self, profile: CostProfile, *, disturbed: float = 0.0) -> None:
        self.now = 0.0
        self._disturbed, self._random = disturbed, Random(1)
        self._executor = CostModelExecutor(
            profile=profile,
            num_blocks=self.num_blocks,
            block_tokens=self.block_tokens,
            vocabulary=self.vocabulary,
            max_context_tokens=self.max_context_tokens,
        )

    def run(self, rows: Sequence[Row]) -> tuple[float, Sequence[Sampled]]:
        seconds, tokens = self._executor.run(rows)
        seconds *= 1 + 4 * (self._random.random() < self._disturbed)
        self.now += seconds
        return seconds, tokens

    def clock(self) -> float:
        return self.now


def measured(executor: Virtual, rounds: int) -> list[Point]:
    bench = Bench(executor, clock=executor.clock)
    return measure(bench, rounds=rounds, progress=lambda text: None)


def test_the_costs_of_an_engine_are_found_again() -> None:
    points = measured(Virtual(TRUE), rounds=1)
    fitted = fit_profile(points, host_tokens_per_s=TRUE.host_tokens_per_s)
    assert astuple(fitted) == pytest.approx(astuple(TRUE), rel=1e-6)
    told = residuals(points, fitted)
    assert all(each.worst_error < 1e-6 for each in told)
    assert [each.group for each in told if not each.fitted] == ["both"]


def test_steps_that_others_disturb_hardly_count() -> None:
    points = measured(Virtual(TRUE, disturbed=0.2), rounds=5)
    fitted = fit_profile(points, host_tokens_per_s=TRUE.host_tokens_per_s)
    assert astuple(fitted) == pytest.approx(astuple(TRUE), rel=0.05)


def test_a_point_measures_the_step_that_it_is_named_for() -> None:
    executor = Virtual(TRUE)
    bench = Bench(executor, clock=executor.clock)
    for _ in range(2):
        bench.hold(0, 1024)
        assert bench.prefill(1024, 256)[0] == Shape(256, 0, 256 * 1024 + 256 * 257 / 2, 0)
        shape, seconds = bench.decode(4, 64, 512)
        assert (shape.prefill_tokens, shape.decode_rows) == (512, 4)
        assert shape.decode_context == pytest.approx(4 * 64, abs=4 * 8)
        assert seconds == pytest.approx(shape.seconds(TRUE))


def test_no_cost_is_negative() -> None:
    """Prefills that seem cheaper the longer their context is cost nothing for it, not less than that."""
    points = [
        Point(
            "p", shapes=[Shape(tokens, 0, tokens * start, 0)], bursts_s=[1e-3 + 1e-5 * tokens - 1e-8 * start]
        )
        for tokens in (16, 64, 256)
        for start in (0, 1000, 9000)
    ]
    assert fit_profile(points, host_tokens_per_s=1.0).attention_s == 0


rows = st.lists(
    st.builds(
        lambda count, start, step: Row(
            call="c",
            tokens=[0] * count,
            start=start,
            blocks=[],
            sampling=Sampling(max_output_tokens=1),
            step=step,
        ),
        st.sampled_from([1, 1, 7, 100]),
        st.integers(0, 5000),
        st.integers(0, 2),
    ),
    max_size=6,
)


@given(rows)
def test_a_shape_costs_what_its_rows_do(rows: list[Row]) -> None:
    assert Shape.of(rows).seconds(TRUE) == pytest.approx(TRUE.seconds(rows))


def test_noise_is_the_spread_of_the_middle_half() -> None:
    point = Point("p", bursts_s=[1.0, 2.0, 2.1, 2.2, 9.0], shapes=[Shape()] * 5)
    assert point.seconds == 2.1
    assert point.noise == pytest.approx(0.2 / 2.1)


# Profiles and their files


def test_a_saved_fit_is_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    fit = Fit(profile=TRUE, engine="embedded", model="m", rounds=1, residuals=(), host={})
    save_fit(fit, path)
    assert load_profile(str(path)) == TRUE
    assert json.loads(path.read_text())["model"] == "m"


@pytest.mark.parametrize("name", PROFILES)
def test_known_profiles_go_by_name(name: str) -> None:
    assert load_profile(name) is PROFILES[name]


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"neither one of .*embedded-cpu"):
        load_profile("embedded-gpu")
    with pytest.raises(ProfileError, match="Is a directory"):
        load_profile(str(tmp_path))
    costs = asdict(replace(TRUE))
    for content, said in (
        ("[]", "Expected `object`"),
        ("{}", "profile"),
        (json.dumps({"profile": {"step_s": 1.0}}), "attention_s"),
        (json.dumps({"profile": costs | {"gpu_s": 1.0}}), "gpu_s"),
        (json.dumps({"profile": costs | {"step_s": -1.0}}), "step_s must be"),
        (json.dumps({"profile": costs | {"step_s": "x"}}), "Expected `float`"),
    ):
        path = tmp_path / "p.json"
        path.write_text(content)
        with pytest.raises(ProfileError, match=said):
            load_profile(str(path))
