"""The simulator beside a recorded run of stock SGLang (``scripts/bench sglang --record`` makes it)."""

from __future__ import annotations

import pytest

from agentsched.workloads.anchor import RecordedRun, error, read_recording, simulated_hit_rate

RECORDING = read_recording()


def test_it_tells_the_hit_rate_within_5_percent() -> None:
    assert abs(error(RECORDING)) < 0.05


@pytest.mark.parametrize("run", RECORDING.runs, ids=lambda run: f"seed {run.seed}")
def test_of_a_single_run_it_tells_the_hit_rate_within_2_points(run: RecordedRun) -> None:
    assert simulated_hit_rate(RECORDING, run.seed) == pytest.approx(run.hit_rate, abs=0.02)


def test_what_was_recorded_had_pressure() -> None:
    """Else any cache would tell the hit rate."""
    for run in RECORDING.runs:
        assert run.recomputed_tokens > RECORDING.kv_tokens
        assert simulated_hit_rate(RECORDING, run.seed, policy="agentsched") > 2 * run.hit_rate
