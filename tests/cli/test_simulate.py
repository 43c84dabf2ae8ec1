"""``agentsched simulate`` as a shell sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentsched.core import log as event_log

MAIN = [sys.executable, "-m", "agentsched", "simulate"]
SMALL = ["gen:continuum-bfcl?programs=6", "--kv-tokens", "450000"]


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MAIN, *words], capture_output=True, text=True, timeout=60)


def test_json_on_stdout_is_a_list_of_one_summary_a_policy_and_nothing_else() -> None:
    done = simulate(*SMALL, "--concurrency", "3", "--policy", "fcfs-lru,agentsched", "--json", "-")
    assert done.returncode == 0, done.stderr
    summaries = json.loads(done.stdout)
    assert [summary["policy"] for summary in summaries] == ["fcfs-lru", "agentsched"]
    assert all(summary["programs"] == 6 and summary["tct_s"]["mean"] > 0 for summary in summaries)
    assert summaries[0]["conditions"]["concurrency"] == 3
    assert "fcfs-lru: 6 programs" in done.stderr


def test_without_json_there_is_a_table(tmp_path: Path) -> None:
    to = tmp_path / "summaries.json"
    done = simulate(*SMALL, "--rate", "100", "--hours", "0.2", "--policy", "plas", "--json", str(to))
    assert done.returncode == 0, done.stderr
    assert "TCT mean, s" in done.stdout
    assert "plas" in done.stdout
    assert json.loads(to.read_text())[0]["policy"] == "plas"


def test_the_log_of_each_policy_replays(tmp_path: Path) -> None:
    policies = ("fcfs-lru", "agentsched")
    done = simulate(
        *SMALL, "--concurrency", "6", "--policy", ",".join(policies), "--log", str(tmp_path / "r.jsonl")
    )
    assert done.returncode == 0, done.stderr
    for policy in policies:
        with (tmp_path / f"r-{policy}.jsonl").open("rb") as lines:
            pairs = list(event_log.replay(lines))
        assert pairs
        assert all(before == after for before, after in pairs)


def test_what_no_engine_can_hold_is_said() -> None:
    done = simulate("gen:continuum-swe?programs=12", "--kv-tokens", "60000", "--concurrency", "2")
    assert done.returncode == 0, done.stderr
    assert "programs left out: context over 60,000 tokens of KV" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([*SMALL, "--concurrency", "2", "--policy", "magic"], 2, "no policy 'magic'; there are: fcfs-lru"),
        ([*SMALL], 2, "either --concurrency (closed loop) or --rate"),
        ([*SMALL, "--concurrency", "2", "--profile", "abacus"], 2, "no profile 'abacus'"),
        (["gen:nothing", "--kv-tokens", "999", "--concurrency", "2"], 1, "no generator 'nothing'"),
        (["no-such-file", "--kv-tokens", "999", "--concurrency", "2"], 1, "no-such-file"),
        (["gen:saga-swe", "--kv-tokens", "99", "--concurrency", "2"], 1, "no program fits into 96 KV tokens"),
        ([*SMALL, "--concurrency", "2", "--log", "/no/such/folder/x"], 1, "/no/such/folder"),
    ],
)
def test_wrong_usage_is_one_message(words: list[str], status: int, message: str) -> None:
    done = simulate(*words)
    assert done.returncode == status
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_teaches_with_examples() -> None:
    done = simulate("--help")
    assert "Examples:" in done.stdout
    assert "gen:saga-swe" in done.stdout
