"""What a leaf counts agrees with what the command did, and limits hold, for it alone."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from agentsched.cgroups import Hint, Leaf, Limits, Sandbox, ToolSpec

pytestmark = [pytest.mark.cgroups, pytest.mark.full_v2]

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"
TOUCH = "x = bytearray({mib} << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\n"


def python(code: str, **more: object) -> ToolSpec:
    return ToolSpec(argv=[sys.executable, "-S", "-c", code], **more)  # type: ignore[arg-type]


def test_cpu_time_of_child_and_grandchild_is_counted(sandbox: Sandbox) -> None:
    burn = BURN.format(seconds=0.25)
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {burn!r}])\n{burn}"
    usage = sandbox.run(python(code)).usage
    # the two interpreters' starts come on top of 0.5 s
    assert 0.45 <= usage.cpu_s <= 0.9


def test_cpu_time_of_a_daemonised_child_is_counted(sandbox: Sandbox) -> None:
    burn = BURN.format(seconds=0.3)
    code = (
        "import os, sys, subprocess\n"
        "r, w = os.pipe()\n"
        f"subprocess.Popen([sys.executable, '-S', '-c', {burn!r} + f'import os; os.write({{w}}, b\"x\")'],"
        " start_new_session=True, pass_fds=[w])\n"
        "os.read(r, 1)\n"
        "os._exit(0)\n"
    )
    assert sandbox.run(python(code)).usage.cpu_s >= 0.28


def test_peak_memory_is_what_was_touched(sandbox: Sandbox) -> None:
    usage = sandbox.run(python(TOUCH.format(mib=64))).usage
    assert 64 << 20 <= usage.peak_memory_bytes <= 90 << 20


def test_over_the_memory_limit_the_leaf_is_killed_and_its_neighbour_is_not(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    ready = threading.Event()
    results = {}

    def neighbour() -> None:
        spec = ToolSpec(
            command="echo ready; read line < fifo; echo done", tool_call="neighbour", cwd=str(tmp_path)
        )
        results["neighbour"] = sandbox.run(spec, on_output=lambda chunk: ready.set())

    os.mkfifo(tmp_path / "fifo")
    thread = threading.Thread(target=neighbour)
    thread.start()
    assert ready.wait(10)
    hog = sandbox.run(python(TOUCH.format(mib=200), limits=Limits(memory_bytes=64 << 20), tool_call="hog"))
    with open(tmp_path / "fifo", "w") as fifo:
        fifo.write("go\n")
    thread.join(10)
    assert hog.oom_killed
    assert hog.exit_status == 128 + 9
    assert "memory limit" in hog.reason
    assert hog.usage.peak_memory_bytes <= 64 << 20
    assert results["neighbour"].exit_status == 0
    assert results["neighbour"].output == b"ready\ndone\n"
    assert not results["neighbour"].oom_killed


def test_a_cpu_limit_slows_down_to_it(sandbox: Sandbox) -> None:
    result = sandbox.run(python(BURN.format(seconds=0.3), limits=Limits(cpu_cores=0.3)))
    assert result.usage.wall_s >= 0.6
    assert result.usage.cpu_s / result.usage.wall_s <= 0.5


def test_a_limit_of_processes_stops_forks(sandbox: Sandbox) -> None:
    code = (
        "import os\n"
        "made = 0\n"
        "try:\n"
        "    while made < 50:\n"
        "        if os.fork() == 0: os.read(0, 1); import time; time.sleep(60)\n"
        "        made += 1\n"
        "except BlockingIOError: pass\n"
        "print(made, flush=True)\n"
        "os._exit(0)\n"
    )
    assert sandbox.run(python(code, limits=Limits(pids=5))).text == "4\n"


def test_a_limit_may_be_changed_while_the_tool_runs(sandbox: Sandbox) -> None:
    limits = []

    def cut(leaf: Leaf, pid: int) -> None:
        leaf.limit_memory(48 << 20)
        limits.append(leaf.usage().memory_bytes)

    result = sandbox.run(python(TOUCH.format(mib=100)), on_start=cut)
    assert result.oom_killed
    assert limits


def test_the_cpu_hint_sets_the_weight_and_the_leaf_tells_pressure(sandbox: Sandbox) -> None:
    seen = []
    spec = ToolSpec(argv=["true"], hint=Hint.parse("cpu:high,memory:low"))
    result = sandbox.run(spec, on_start=lambda leaf, pid: seen.append(leaf.pressure()))
    assert result.unenforced == ()
    assert seen[0].memory_s >= 0
