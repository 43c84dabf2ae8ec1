"""The event log of a run replays through a new core to the same decisions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from agentsched.core import POLICY_NAMES
from agentsched.core.events import Woken
from agentsched.core.log import read, replay
from agentsched.daemon.server import Daemon
from agentsched.daemon.settings import Settings
from agentsched.engines.byte_frontend import ByteFrontend
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.simulated import simulated
from tests.daemon.serving import FAST, Served, served


async def agent(served_: Served, name: str) -> None:
    """Four turns with a tool each, as an SDK reports them."""
    messages = [{"role": "user", "content": f'/call bash {{"command": "{name}"}}' + " " * 300}]
    for turn in range(4):
        body = {"model": "simulated", "messages": messages}
        _, answer, _ = await served_.post("/v1/chat/completions", body, x_agentsched_program=name)
        message = answer["choices"][0]["message"]
        (call,) = message["tool_calls"]
        started = {"event": "ToolStarted", "tool_call": call["id"], "tool": "bash"}
        finished = {"event": "ToolFinished", "tool_call": call["id"], "exit_status": 0}
        finished |= {"wall_s": 0.0, "cpu_s": 0.0, "peak_memory_bytes": 0}
        await served_.post("/agentsched/v1/events", {"events": [started, finished]})
        result = {"role": "tool", "tool_call_id": call["id"], "content": f"{turn} " * 50}
        messages += [message, result, {"role": "user", "content": messages[0]["content"]}]
    await served_.post("/agentsched/v1/events", {"events": [{"event": "ProgramClosed", "program": name}]})


@pytest.mark.parametrize("policy", POLICY_NAMES)
async def test_a_run_replays_to_the_same_decisions(policy: str, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    async with served(kv_tokens=8192, policy=policy, log=log) as served_:
        await asyncio.gather(*(agent(served_, f"agent-{number}") for number in range(6)))
        assert await served_.programs() == {}
    with log.open("rb") as lines:
        header, entries = read(lines)
        kinds = {type(entry.event).__name__ for entry in entries if entry.event is not None}
    assert header.policy == policy
    assert {"CallArrived", "CallFinished", "ToolFinished", "StepReport", "ProgramClosed"} <= kinds
    with log.open("rb") as lines:
        pairs = list(replay(lines))
    assert len(pairs) > 6
    assert all(logged == replayed for logged, replayed in pairs)


async def test_answered_tool_calls_are_joined_to_the_call_that_brings_their_results(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    async with served(log=log) as served_:
        await agent(served_, "a")
    with log.open("rb") as lines:
        events = [entry.event for entry in read(lines)[1] if entry.event is not None]
    asked = [e.tool_calls[0].tool_call for e in events if type(e).__name__ == "CallFinished"]  # type: ignore[union-attr]
    answered = [e.answers for e in events if type(e).__name__ == "CallArrived"]  # type: ignore[union-attr]
    assert answered == [(), *((tool_call,) for tool_call in asked[:-1])]


async def test_a_log_that_cannot_be_written_is_known_before_anything_starts(tmp_path: Path) -> None:
    settings = Settings(port=0, log=tmp_path / "missing" / "events.jsonl")
    engine = InProcessEngine(simulated(FAST, 1024))
    with pytest.raises(FileNotFoundError):
        async with Daemon(lambda: engine, ByteFrontend(1024), settings):
            pass


OUT_OF_ROOM = """
import resource, sys
from pathlib import Path
from agentsched.core.events import Woken
from agentsched.core.log import Header
from agentsched.daemon.eventlog import EventLog

log = EventLog(Path(sys.argv[1]), Header(agentsched="0", policy="fcfs-lru", epoch=1, started_unix_s=0.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
for now in range(9):
    log.write(now, Woken(), [])
"""


def test_a_log_that_can_grow_no_more_ends_and_that_is_said_once(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_ROOM, str(log)], capture_output=True, text=True, check=True
    )
    assert done.stderr.count(f"the event log {log} ends here") == 1
    with log.open("rb") as lines:
        kept = [entry.event for entry in read(lines)[1]]
    assert 0 < len(kept) < 9
    assert set(kept) == {Woken()}
