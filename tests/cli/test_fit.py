"""``agentsched fit``: a real engine, a small one, is measured and its profile written."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from agentsched.cli.fit import fit
from agentsched.engines.embedded.preset import CONFIG, PRESETS, SEED_KEY
from agentsched.workloads import fit as fitting
from agentsched.workloads.fit import load_profile


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(PRESETS["tiny"] | {SEED_KEY: 0, "max_position_embeddings": 512}))
    return folder


def test_an_engine_is_measured_and_its_profile_can_be_used(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "KV_TOKENS", 32_768)
    out = tmp_path / "here.json"
    done = CliRunner().invoke(fit, ["--model", str(model), "--rounds", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    profile = load_profile(str(out))
    # A step of a real engine takes time, whatever the machine; 512 tokens take less than 10 s on any.
    assert profile.step_s + profile.prefill_token_s > 0
    assert profile.prefill_s(0, 512) < 10
    document = json.loads(out.read_text())
    assert document["engine"] == "embedded"
    assert {"prefill of 256", "decode of 32"} <= {each["group"] for each in document["residuals"]}
    assert "Round 1 of 1" in done.stderr
    assert "Round 1 of 1" not in done.stdout


def test_what_cannot_be_measured_or_written_is_said(model: Path, tmp_path: Path) -> None:
    for config, said in (
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not served"),
        (PRESETS["tiny"] | {"max_position_embeddings": 64}, "a fit needs 512 at least"),
    ):
        (model / CONFIG).write_text(json.dumps(config))
        done = CliRunner().invoke(fit, ["--model", str(model), "--out", str(tmp_path / "x.json")])
        assert done.exit_code == 1
        assert said in done.output
    nowhere = CliRunner().invoke(fit, ["--model", str(model), "--out", str(tmp_path / "no" / "x.json")])
    assert nowhere.exit_code == 2
    assert "no folder" in nowhere.output


def test_the_presets_offered_are_those_there_are() -> None:
    [option] = [each for each in fit.params if each.name == "preset"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == sorted(PRESETS)
