"""The event log of a run replays through a new core to the same decisions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from agentsched.core import POLICY_NAMES
from agentsched.core.events import Woken
from agentsched.core.log import read, replay, steps
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
from agentsched.core import Core, make_policy
from agentsched.core.events import Woken
from agentsched.core.log import Header
from agentsched.daemon.eventlog import EventLog, RETRY_S

path, core = Path(sys.argv[1]), Core(make_policy("fcfs-lru"))
log = EventLog(path, Header(agentsched="0", policy="fcfs-lru", epoch=1, started_unix_s=0.0), core)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 200, most))
def wake(now):
    log.write(now, Woken(), core.handle(now, Woken()))
    log.go_on(core)
for now in range(9):
    wake(now)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, most))
wake(9 + RETRY_S)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
wake(10 + 2 * RETRY_S)
wake(11 + 2 * RETRY_S)
"""


def events_of(path: Path) -> list[object]:
    with path.open("rb") as lines:
        return [entry.event for entry in read(lines)[1] if entry.event is not None]


def test_a_log_that_can_grow_no_more_ends_and_that_is_said_once(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_ROOM, str(log)], capture_output=True, text=True, check=True
    )
    assert done.stderr.count(f"the event log {log} ends here") == 1
    assert done.stderr.count("goes on; what happened meanwhile is not in it") == 1
    ended = tmp_path / "events-000001.jsonl"
    assert sorted(tmp_path.iterdir()) == [ended, log]
    assert 0 < len(events_of(ended)) < 9
    assert not ended.read_bytes().endswith(b"\n")  # cut off in a line, and read all the same
    assert events_of(log) == [Woken()]
    for path in (ended, log):
        with path.open("rb") as lines:
            assert all(step.agrees for step in steps(*read(lines)))


async def test_a_full_file_is_followed_by_the_next_and_the_oldest_go(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    for _ in range(2):  # the second run takes the name from the first
        async with served(kv_tokens=8192, log=log, log_bytes=60_000, log_files=4) as served_:
            await asyncio.gather(*(agent(served_, f"agent-{number}") for number in range(12)))
    check_files(tmp_path, log)


def check_files(folder: Path, log: Path) -> None:
    """Four files, numbered in the order of their names, each of which replays."""
    files = sorted(folder.iterdir())
    assert len(files) == 4
    assert files[-1] == log
    numbers = [int(path.stem.removeprefix("events-")) for path in files[:-1]]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert numbers[0] > 2
    headers = []
    for path in files:
        assert path.stat().st_size < 150_000
        with path.open("rb") as lines:
            header, entries = read(lines)
            found = list(steps(header, entries))
        headers.append(header)
        assert found
        assert all(step.agrees for step in found)
    assert [header.file for header in headers] == [headers[0].file + n for n in range(4)]
    assert {header.epoch for header in headers} == {headers[0].epoch}


async def test_no_word_of_a_prompt_or_an_answer_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    async with served(log=log) as served_:
        await served_.chat("/say heliotrope", program="p")
        await served_.chat("no heliotrope", program="p", max_tokens=3, stop="heliotrope")
        await served_.chat("heliotrope " * 20_000, program="p")
    assert b"heliotrope" not in log.read_bytes()
    assert b'"CallFinished"' in log.read_bytes()
