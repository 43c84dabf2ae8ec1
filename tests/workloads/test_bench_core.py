"""The benchmark of decisions: what it loads the core with, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentsched.core import events as ev
from agentsched.workloads.bench import core as bench
from agentsched.workloads.fixed_engine import FINISH_S, FIRST_TOKEN_S, START_S, FixedEngine


def test_a_loaded_fleet_has_programs_in_all_places() -> None:
    fleet = bench.Fleet("agentsched", 200)
    fleet.measure(500)
    assert len(fleet.took_s) == len(fleet.kinds) >= 500
    fleet.core.check_invariants()
    shares = fleet.shares()
    live = shares.pop("live")
    assert live == 200 == sum(shares.values()), "whoever ends is followed by another"
    assert min(shares.values()) > 0, f"nobody is somewhere: {shares}"


def test_growth_is_held_against_log_n() -> None:
    rows: list[bench.Row] = [
        {"policy": "p", "programs": size, "median_us": us}
        for size, us in ((100, 10.0), (10_000, 19.0), (1_000, 16.0))
    ]
    small, large = bench.growth(rows, "p", "median_us")
    assert small == "p, median: 100 to 1,000 programs: 1.60x where log n grows 1.50x: FASTER than log n"
    assert large == "p, median: 100 to 10,000 programs: 1.90x where log n grows 2.00x: no faster than log n"


def test_the_command_writes_its_results(tmp_path: Path) -> None:
    arguments = ["--programs", "20", "--programs", "40", "--events", "200", "--results", str(tmp_path)]
    result = CliRunner().invoke(bench.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "core.json").read_text())
    assert [(row["policy"], row["programs"]) for row in told["decisions"]] == [
        ("fcfs-lru", 20),
        ("agentsched", 20),
        ("fcfs-lru", 40),
        ("agentsched", 40),
    ]
    assert {"CallArrived", "CallFinished"} <= told["decisions"][0]["by_event"].keys()
    assert "| 40 | 1 |" in (tmp_path / "core.md").read_text()


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench.main, ["--policies", "none", "--results", str(tmp_path)])
    assert result.exit_code == 1
    assert "no policy 'none'" in result.output
    assert not list(tmp_path.iterdir())


def test_calls_of_the_fixed_engine_take_their_times_however_many_there_are() -> None:
    engine = FixedEngine("e0", 10_000)
    for number in range(3):
        engine.submit(f"c{number}", f"p{number}", [], 100, 10, now=1.0)
    for after_s, kind in (
        (START_S, ev.CallStarted),
        (FIRST_TOKEN_S, ev.FirstToken),
        (FINISH_S, ev.CallFinished),
    ):
        assert engine.next_s == pytest.approx(1.0 + after_s)
        assert [type(output) for output in engine.advance(1.0 + after_s)] == [kind] * 3
    assert engine.next_s is None
    assert {held.device_tokens for held in engine.report(9.0).held} == {110}
    assert engine.report(9.0).held == (), "nothing has changed since"
    engine.forget("p0")
    assert [held.program for held in engine.report(9.0, snapshot=True).held] == ["p1", "p2"]
