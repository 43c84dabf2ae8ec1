"""The controller on real control groups: bursts, its death, and who it listens to."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentsched.cgroups import Ending, HostRefused, Sandbox, SpecRefused, tree
from agentsched.cgroups.control import client, messages
from agentsched.workloads.host_leaf import HostLeaf
from tests.cgroups.looking import eventually, is_running

pytestmark = [pytest.mark.cgroups, pytest.mark.full_v2]

MIB = 1 << 20
TERMS = {"least_reserve_bytes": 64 * MIB, "stall_s": 20.0}

# Takes so many MiB, at so many seconds each, and holds them for a while.
TOOL = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(bytearray(b"x") * (1 << 20))
    time.sleep(float(sys.argv[2]))
time.sleep(float(sys.argv[3]))
print(len(held))
"""

AGENT = """
import json, os, sys, threading
from agentsched.cgroups import Sandbox, ToolSpec
calls = json.loads(sys.argv[1])
with Sandbox.open("first") as sandbox:
    for _ in range(400):
        sandbox.run(ToolSpec(argv=["sleep", "0.05"]))
        if sandbox.controlled.connected: break
    else: sys.exit("no controller came up")
print("ready", flush=True)
def run(name, priority, words):
    with Sandbox.open(name, priority=priority) as sandbox:
        result = sandbox.run(ToolSpec(argv=[sys.executable, "-S", "-c", *words], timeout_s=60))
        said = result.feedback
        ends[name] = {"status": result.exit_status, "ending": said.ending.value, "note": said.note}
ends = {}
threads = [threading.Thread(target=run, args=call) for call in calls]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(ends), flush=True)
"""


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A name and terms of a controller of this test's own; the path of its log."""
    log = tmp_path / "control.log"
    monkeypatch.setenv("AGENTSCHED_CONTROL_NAME", f"test-{os.getpid()}-{tmp_path.name}")
    monkeypatch.setenv("AGENTSCHED_CONTROL_LINGER_S", "0.2")
    monkeypatch.setenv("AGENTSCHED_CONTROL_TERMS", json.dumps(TERMS))
    monkeypatch.setenv("AGENTSCHED_CONTROL_LOG", str(log))
    return log


@pytest.fixture
def host() -> Iterator[HostLeaf]:
    try:
        leaf = HostLeaf("test-host", 640 * MIB)
    except HostRefused as error:
        pytest.skip(str(error))
    with leaf:
        yield leaf


def controller_pid() -> int | None:
    connection = client.connect_once()
    if connection is None:
        return None
    with connection:
        size = struct.calcsize("3i")
        return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0])


def agents(host: HostLeaf, calls: list[Any]) -> dict[str, Any]:
    process = host.start([sys.executable, "-c", AGENT, json.dumps(calls)])
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, "the agent outlives whatever its tools do"
    ends: dict[str, Any] = json.loads(output.splitlines()[-1])
    return ends


def test_a_burst_of_one_is_no_end_of_the_others_nor_of_the_agent(controller: Path, host: HostLeaf) -> None:
    words = [TOOL, "280", "0.002", "0.3"]
    ends = agents(host, [["low", 0, words], ["lower", 0, words], ["high", 3, words]])
    assert host.oom_kills == 0
    assert ends["high"]["status"] == 0
    assert "Cap(" in controller.read_text()
    assert "Protect(" in controller.read_text()
    for name in ("low", "lower"):
        assert ends[name]["status"] == 0 or "was ended while it held" in ends[name]["note"]


def test_one_that_needs_more_than_there_is_ends_and_its_agent_reads_why(
    controller: Path, host: HostLeaf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTSCHED_CONTROL_TERMS", json.dumps(TERMS | {"stall_s": 1.0}))
    (end,) = agents(host, [["huge", 0, [TOOL, "2000", "0.001", "0"]]]).values()
    assert end["ending"] == Ending.KILLED.value
    assert "needed more than this machine has (640 MiB in all)" in end["note"]
    assert "Try: " in end["note"]


def test_a_killed_controller_leaves_nothing_held_back_and_another_takes_over(
    controller: Path, host: HostLeaf
) -> None:
    words = [TOOL, "255", "0.001", "1"]  # short of memory, and yet enough while nobody rations it
    calls = json.dumps([["one", 0, words], ["two", 0, words]])
    process = host.start([sys.executable, "-c", AGENT, calls])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    pid = controller_pid()
    assert pid is not None
    assert eventually(lambda: "Cap(" in controller.read_text())
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    assert eventually(lambda: not held_back(host), within_s=5.0)
    assert time.monotonic() - killed_s < 5.0
    assert eventually(lambda: controller_pid() not in (None, pid)), "another one is started"
    process.communicate(timeout=90)
    assert process.returncode == 0
    assert not is_running(pid)


def held_back(host: HostLeaf) -> list[str]:
    """Control files that hold some call back, or keep memory from it."""
    held = []
    usually = {
        "memory.oom_control": "oom_kill_disable 0",
        "memory.high": "max",
        "memory.low": "0",
        "cgroup.freeze": "0",
    }
    for folder in Path(host.folder).rglob("*/"):
        for name, usual in usually.items():
            try:
                text = (folder / name).read_text()
            except OSError:
                continue
            if usual not in text.splitlines():
                held.append(str(folder / name))
    return held


WEIGHTY = """
import os, subprocess, sys, time
from pathlib import Path
from agentsched.cgroups import Sandbox, ToolSpec
def look(_):
    (leaf,) = sandbox.leaves().values()
    folder = Path(leaf.folders.get("cpu", leaf.folder)).parent
    file = next(folder / name for name in ("cpu.shares", "cpu.weight") if (folder / name).exists())
    usual = {"cpu.shares": "1024", "cpu.weight": "100"}[file.name]
    deadline = time.monotonic() + 10
    while (text := file.read_text().strip()) == usual and time.monotonic() < deadline: time.sleep(0.01)
    print("weight", int(text) / int(usual), flush=True)
with Sandbox.open("weighty", priority=2) as sandbox:
    sandbox.run(ToolSpec(command="echo up; sleep 0.2"), on_output=look)
    print(sys.stdin.readline(), flush=True)
"""


def test_two_runtimes_have_one_controller_and_weights_follow_priorities(
    controller: Path, host: HostLeaf
) -> None:
    processes = [host.start([sys.executable, "-c", WEIGHTY]) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "weight 4.0\n"
    pid = controller_pid()
    assert pid is not None
    assert controller_pid() == pid
    assert eventually(lambda: controllers(host) == [pid]), "whoever comes second goes"
    for process in processes:
        process.communicate("go on\n", timeout=30)
    assert eventually(lambda: not is_running(pid)), "it ends when nobody needs it"


def controllers(host: HostLeaf) -> list[int]:
    """Controller processes in it."""
    found = []
    for pid in tree.pids(host.folder):
        try:
            if b"control.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def test_a_standing_that_cannot_be_is_refused() -> None:
    with pytest.raises(SpecRefused, match="priority must be from 0 to 9"):
        Sandbox.open("x", priority=10)
    with pytest.raises(SpecRefused, match="weight must be from"):
        Sandbox.open("x", weight=0.0)


def test_garbage_does_not_end_the_controller(controller: Path) -> None:
    connection = client._connect()
    assert connection is not None
    with connection:
        for packet in (b"x", b"{}", b'{"type":"Began"}', b'{"type":"Ended","leaf":"nowhere","asks":true}'):
            connection.send(packet)
        connection.settimeout(10)
        assert messages.to_runtime.decode(connection.recv(4096)) == messages.Done(leaf="nowhere")
    assert client._started[-1].wait(timeout=30) == 0, "it ends when nobody needs it"
