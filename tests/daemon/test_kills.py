"""A real daemon, killed under the load of real clients: nothing is lost, wrong, or left over."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched.workloads.bench.kills import Trial, goals

KILLS = 5


@pytest.mark.timeout(180)
async def test_what_clients_got_outlives_kill_9(tmp_path: Path) -> None:
    outcome = await Trial(tmp_path, agents=8, seed=7, life_s=(1.0, 2.5)).go(KILLS, patience_s=60.0)
    assert {name: goal["value"] for name, goal in goals(outcome).items()} == dict.fromkeys(goals(outcome), 0)
    assert outcome.kills == KILLS
    assert outcome.answers > 20
    assert outcome.tries > outcome.answers  # clients met a dead daemon
    assert outcome.decisions > 20
    assert 1 < outcome.logs <= KILLS + 1
    assert len(outcome.ready_s) > 1
