"""The benchmark on a real SGLang server, as far as it goes without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from agentsched.workloads.bench._sglang_overhead import Overhead
from agentsched.workloads.bench._sglang_runs import Run, Runs
from agentsched.workloads.bench.sglang import main


def run(tct_mean_s: float, tct_p99_s: float, recomputed_tokens: int) -> Run:
    return Run(
        tct_mean_s=tct_mean_s,
        tct_p99_s=tct_p99_s,
        return_ttft_p50_s=1.0,
        return_ttft_p99_s=2.0,
        span_s=10.0,
        prompt_tokens=1_000,
        cached_tokens=250,
        recomputed_tokens=recomputed_tokens,
        context_tokens=500,
        server_cpu_s=5.0,
        daemon_cpu_s=0.1,
    )


def test_goals_are_medians_of_ratios_of_the_same_repeat() -> None:
    stock = [run(30.0, 60.0, 900), run(20.0, 40.0, 900), run(40.0, 80.0, 900)]
    ours = [run(10.0, 60.0, 100), run(10.0, 50.0, 300), run(10.0, 40.0, 900)]
    goals = Runs({"stock": stock, "agentsched": ours}).goals()
    found = {name: (goal["value"], goal["least"], goal["met"]) for name, goal in goals.items()}
    assert found == {
        "recomputed tokens, stock SGLang over agentsched": (3.0, 1.0, True),
        "TCT mean, stock SGLang over agentsched": (3.0, 2.0, True),
        "TCT P99, stock SGLang over agentsched": (1.0, 0.8, True),
    }
    assert stock[0].hit_rate == 0.25


def test_nothing_recomputed_is_no_division_by_nothing() -> None:
    runs = Runs({"stock": [run(1.0, 1.0, 800)], "agentsched": [run(1.0, 1.0, 0)]})
    assert runs.ratios("recomputed_tokens", "agentsched") == [800.0]


def test_an_idle_plugin_is_free_only_if_the_whole_interval_is_small() -> None:
    stock = [1e-4] * 4
    noisy = [1.2e-4, 0.8e-4, 1.2e-4, 0.8e-4]
    overhead = Overhead(
        cpu_token_s={"stock": stock, "off": [1.01e-4] * 4, "alone": noisy},
        same_outputs={"stock": True, "off": True, "alone": False},
    )
    change = overhead.change("off")
    assert (change.mean, change.low, change.high) == pytest.approx((1.01, 1.01, 1.01))
    met = {name: goal["met"] for name, goal in overhead.goals().items()}
    assert met == {
        "CPU a token over stock SGLang's, plugin not asked for": True,
        "same outputs as stock SGLang, plugin not asked for": True,
        "CPU a token over stock SGLang's, no daemon": False,
        "same outputs as stock SGLang, no daemon": False,
    }


def test_without_an_sglang_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTSCHED_SGLANG_PYTHON", str(tmp_path / "python"))
    done = CliRunner().invoke(main, ["--quick", "--out", str(tmp_path / "out.json")])
    assert done.exit_code == 1
    assert f"{tmp_path / 'python'} is not there" in done.output
    assert not (tmp_path / "out.json").exists()


def test_an_unknown_contender_is_refused_by_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--contenders", "vllm", "--out", str(tmp_path / "out.json")])
    assert done.exit_code == 1
    assert "no contender vllm; there are stock, agentsched, admission, retention, soft" in done.output
