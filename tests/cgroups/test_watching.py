"""Running tools are looked at: real processes in real sandboxes, and a real daemon that learns of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from agentsched.cgroups import Progress, Sandbox, ToolSpec
from agentsched.core.foresight import told_ends_s
from agentsched.sdk.reporting import Reporter
from agentsched.sdk.tool_runs import ToolRun
from tests.daemon.serving import served, until
from tests.sdk.recording import Recording

SUITE = """
import time, pytest
@pytest.mark.parametrize("number", range(20))
def test_it(number): time.sleep(0.1)
"""
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
LOAD = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def spec(suite: Path, *words: str, **more: object) -> ToolSpec:
    return ToolSpec(argv=(*PYTEST, *words), cwd=str(suite), env=os.environ | LOAD, **more)  # type: ignore[arg-type]


def test_a_real_pytest_tells_rising_shares(plain: Sandbox, suite: Path) -> None:
    seen: list[Progress] = []
    result = plain.run(spec(suite), on_progress=seen.append)
    assert result.exit_status == 0
    shares = [progress.done_fraction for progress in seen if progress.done_fraction is not None]
    assert len(shares) >= 4
    assert shares == sorted(shares)
    assert shares[0] < 0.6
    assert shares[-1] > 0.8
    assert any(progress.source.endswith("of 20 tests") for progress in seen)
    gaps = [b.elapsed_s - a.elapsed_s for a, b in pairwise(seen)]
    assert min(gaps) >= 0.24


def test_a_quiet_pytest_tells_when_it_runs_again(plain: Sandbox, suite: Path) -> None:
    first: list[Progress] = []
    again: list[Progress] = []
    plain.run(spec(suite, "-q"), on_progress=first.append)
    plain.run(spec(suite, "-q"), on_progress=again.append)
    halfway = [p.done_fraction for p in again if p.done_fraction is not None and p.done_fraction < 0.7]
    assert not [p for p in first if p.done_fraction is not None and p.done_fraction < 0.7]
    assert halfway


def test_a_silent_tool_is_told_without_a_share(plain: Sandbox) -> None:
    seen: list[Progress] = []
    plain.run(ToolSpec(command="sleep 1.3"), on_progress=seen.append)
    assert [progress.done_fraction for progress in seen] == [None]
    assert 1.0 <= seen[0].elapsed_s < 1.3


async def test_the_daemons_core_uses_what_a_running_tool_tells(plain: Sandbox, suite: Path) -> None:
    async with served() as served_:
        core = served_.daemon._host._core
        await served_.chat("/say a", program="p")
        reporter = Reporter(served_.url)
        chosen = spec(suite, tool_call="t")
        run = ToolRun(reporter, "p", chosen)
        running = asyncio.create_task(plain.arun(chosen, on_progress=run.progressed))

        def told() -> bool:
            return bool("p" in core.state.programs and told_ends_s(core.state, core.state.programs["p"]))

        await until(told, "the core knows of the tool's progress")
        (tool,) = core.state.programs["p"].running.values()
        assert 0 < max(share for share, _ in tool.told.values()) < 1
        result = await running
        run.ended(result)
        await asyncio.to_thread(reporter.flush)
        await until(lambda: not core.state.programs["p"].running, "its end is known")
    assert result.exit_status == 0


RUN = [sys.executable, "-c", "from agentsched.cli.main import main; main()", "run"]


@pytest.mark.parametrize("backend", ["none", pytest.param("auto", marks=pytest.mark.cgroups)])
async def test_agentsched_run_looks_at_output_on_its_way(backend: str, suite: Path) -> None:
    async with served() as served_:
        core = served_.daemon._host._core
        await served_.chat("/say a", program="p")
        told: list[float] = []

        def look() -> bool:
            tools = core.state.programs["p"].running.values()
            told.extend(share for tool in tools for share, _ in tool.told.values())
            return bool(told)

        environment = os.environ | LOAD | {"AGENTSCHED_URL": served_.url, "AGENTSCHED_BACKEND": backend}
        words = ["--program", "p", "--tool-call", "t", "--feedback", str(suite / "feedback.json")]
        process = await asyncio.create_subprocess_exec(
            *RUN, *words, "--", *PYTEST, cwd=suite, env=environment, stdout=subprocess.PIPE
        )
        await until(look, "the core knows of the tool's progress")
        output, _ = await process.communicate()
    assert process.returncode == 0
    assert b"collected 20 items" in output
    assert b"20 passed" in output
    record = json.loads((suite / "feedback.json").read_text())
    assert (record["ending"], record["note"]) == ("exited", "")
    assert record["used"]["wall_s"] > 2


@pytest.fixture
def daemon() -> Iterator[str]:
    with Recording() as recording:
        yield recording.url


def relayed(daemon: str, script: str, **streams: object) -> subprocess.CompletedProcess[bytes]:
    words = [*RUN, "--daemon", daemon, "--", "sh", "-c", script]
    return subprocess.run(words, timeout=60, **streams)  # type: ignore[call-overload, no-any-return]


def test_relayed_output_arrives_whole_and_in_order(daemon: str, tmp_path: Path) -> None:
    script = "for n in 1 2 3 4 5 6 7 8 9; do echo out $n; echo err $n >&2; done; seq 200000; exit 3"
    together = tmp_path / "together"
    with together.open("wb") as file:
        assert relayed(daemon, script, stdout=file, stderr=subprocess.STDOUT).returncode == 3
    lines = together.read_text().splitlines()
    assert lines[:18] == [f"{name} {n}" for n in range(1, 10) for name in ("out", "err")]
    assert lines[18 : 18 + 200_000] == [str(n) for n in range(1, 200_001)]
    apart = relayed(daemon, script, capture_output=True)
    assert apart.stdout.splitlines()[:2] == [b"out 1", b"out 2"]
    assert b"err 9" in apart.stderr


def test_a_reader_that_goes_away_ends_the_command_as_a_pipe_would(daemon: str) -> None:
    words = " ".join(f"'{word}'" for word in [*RUN, "--daemon", daemon, "yes"])
    command = f"{words} 2>/dev/null | head -n 1"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=30)
    assert done.stdout == b"y\n"


def test_a_leftover_that_holds_the_output_open_delays_nothing(daemon: str) -> None:
    done = relayed(daemon, "setsid sleep 300 & echo done", capture_output=True)
    assert done.stdout == b"done\n"
