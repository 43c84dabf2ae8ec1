"""When a runtime dies, hangs or ends, nothing of its tools stays behind, and no task stays frozen."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentsched.cgroups import Leaf, Limits, Sandbox, SandboxError, ToolSpec, leftovers, tree
from agentsched.cgroups.sandbox import Runtime
from tests.cgroups.looking import eventually, instances_of, is_running, start_runtime

pytestmark = pytest.mark.cgroups

WITHIN_S = 5.0

# A runtime with two tools, each with a daemonised child, both frozen for ten minutes.
RUNTIME = """
import threading, time
from agentsched.cgroups import Sandbox, ToolSpec
sandbox = Sandbox.open("victim")
ready = threading.Barrier(3)
pids = []
def started(leaf, pid):
    while len(leaf.pids()) < 2: time.sleep(0.01)
    pids.extend(leaf.pids())
    leaf.freeze(600)
    ready.wait()
def run(name):
    sandbox.run(ToolSpec(command="setsid sleep 300 & sleep 300", tool_call=name), on_start=started)
for name in ("a", "b"):
    threading.Thread(target=run, args=(name,), daemon=True).start()
ready.wait()
print(*pids, sandbox.watchdog_pid, flush=True)
"""
WAIT = "time.sleep(300)"

Started = tuple[subprocess.Popen[str], list[int], int]
Start = Callable[..., Started]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts runtimes; gives process, pids of its tools, pid of its watchdog. All killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def begin(last: str = WAIT, **environment: str) -> Started:
        process, words = start_runtime(RUNTIME + last, **environment)
        processes.append(process)
        *pids, guard = map(int, words)
        assert len(pids) >= 4
        return process, pids, guard

    yield begin
    for process in processes:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()  # not read to its end: a forked child may hold it
        assert eventually(functools.partial(_is_gone, process.pid))


def _is_gone(pid: int) -> bool:
    return instances_of(pid) == []


def nothing_left(process: subprocess.Popen[str], pids: list[int], guard: int) -> bool:
    return instances_of(process.pid) == [] and not any(map(is_running, pids)) and not is_running(guard)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.full_v2), signal.SIGTERM, signal.SIGSEGV]
)
@pytest.mark.parametrize("backend", ["auto", "none"])
def test_a_killed_runtime_leaves_nothing(start: Start, number: signal.Signals, backend: str) -> None:
    process, pids, guard = start(AGENTSCHED_BACKEND=backend)
    assert all(map(is_running, pids))
    process.send_signal(number)
    process.wait(10)
    assert eventually(lambda: nothing_left(process, pids, guard), WITHIN_S)


def test_signals_to_the_runtimes_group_do_not_stop_the_watchdog(start: Start) -> None:
    process, pids, guard = start()
    os.kill(guard, signal.SIGINT)
    os.kill(guard, signal.SIGTERM)
    assert is_running(guard)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    assert eventually(lambda: nothing_left(process, pids, guard), WITHIN_S)


@pytest.mark.parametrize("last", ["", "raise SystemExit(3)", "import os; os.execv('/bin/true', ['true'])"])
def test_a_runtime_that_ends_with_tools_running_leaves_nothing(start: Start, last: str) -> None:
    process, pids, guard = start(last)
    process.wait(20)
    assert eventually(lambda: nothing_left(process, pids, guard), WITHIN_S)


def test_a_forked_child_of_the_runtime_neither_cleans_up_nor_keeps_the_watchdog(start: Start) -> None:
    # the first child runs the exit handlers; the second keeps the pipe to the watchdog open
    last = (
        "import os, sys\nif not os.fork(): sys.exit()\nif not os.fork(): time.sleep(4); os._exit(0)\n" + WAIT
    )
    process, pids, guard = start(last)
    assert not eventually(lambda: not all(map(is_running, [*pids, guard])), 0.5)
    process.kill()
    process.wait(10)
    assert eventually(lambda: nothing_left(process, pids, guard), WITHIN_S)


def test_cleanup_removes_what_is_left_when_the_watchdog_died_too(start: Start) -> None:
    process, pids, guard = start()
    (live,) = instances_of(process.pid)
    with pytest.raises(ValueError, match="not known to be dead"):
        leftovers.remove(live)
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait(10)
    (dead,) = instances_of(process.pid)
    assert (live.alive, dead.alive) == (True, False)
    assert set(pids) <= set(dead.pids)
    leftovers.remove(dead)
    assert nothing_left(process, pids, guard)


def test_a_watchdog_that_died_is_replaced_and_knows_the_leases(sandbox: Sandbox) -> None:
    seen: list[bool] = []

    def started(leaf: Leaf, pid: int) -> None:
        leaf.freeze(lease_s=1.0)
        old = sandbox.watchdog_pid
        assert old is not None
        os.kill(old, signal.SIGKILL)
        assert eventually(lambda: not is_running(old))
        # the next tool call notices
        assert sandbox.run(ToolSpec(argv=["true"])).exit_status == 0
        seen.append(sandbox.watchdog_pid != old)

    result = sandbox.run(ToolSpec(command="sleep 0.1", timeout_s=10), on_start=started)
    assert seen == [True]
    assert (result.timed_out, result.exit_status) == (False, 0)


def _frozen(leaf: Leaf) -> bool:
    folder = os.path.dirname(leaf.entries()[-1])
    return tree.keyed(tree.read_if_there(f"{folder}/cgroup.events"), "frozen") == 1


@pytest.mark.full_v2
def test_a_freeze_ends_with_its_lease_though_nobody_thaws(sandbox: Sandbox) -> None:
    seen: list[bool] = []

    def started(leaf: Leaf, pid: int) -> None:
        begun = time.monotonic()
        leaf.freeze(lease_s=2.0)
        seen.append(eventually(lambda: _frozen(leaf), 1.9))
        # this thread does nothing now, as one that hangs would
        seen.append(eventually(lambda: not _frozen(leaf), 5.0))
        seen.append(1.95 <= time.monotonic() - begun <= 6.0)

    assert sandbox.run(ToolSpec(argv=["sleep", "0.2"], timeout_s=20), on_start=started).exit_status == 0
    assert seen == [True, True, True]


def test_a_renewed_freeze_holds_on_and_thaw_ends_it(sandbox: Sandbox) -> None:
    seen: list[bool] = []

    def started(leaf: Leaf, pid: int) -> None:
        leaf.freeze(lease_s=0.4)
        leaf.freeze(lease_s=60)
        seen.append(eventually(lambda: _frozen(leaf)))
        seen.append(not eventually(lambda: not _frozen(leaf), 0.7))
        leaf.thaw()
        seen.append(eventually(lambda: not _frozen(leaf)))

    assert sandbox.run(ToolSpec(argv=["sleep", "0.2"], timeout_s=20), on_start=started).exit_status == 0
    assert seen == [True, True, True]


def test_a_frozen_tool_can_time_out(sandbox: Sandbox) -> None:
    result = sandbox.run(
        ToolSpec(argv=["sleep", "300"], timeout_s=0.4), on_start=lambda leaf, pid: leaf.freeze(lease_s=60)
    )
    assert result.timed_out


@pytest.mark.full_v2
def test_a_leased_limit_falls_back_to_the_standing_one(sandbox: Sandbox) -> None:
    files: list[Path] = []
    seen: list[list[str]] = []

    def started(leaf: Leaf, pid: int) -> None:
        can = sandbox.capabilities.backend
        name = "memory.max" if can == "v2" else "memory.limit_in_bytes"
        files.extend(
            Path(entry).parent / name for entry in leaf.entries() if (Path(entry).parent / name).exists()
        )
        before = files[0].read_text()
        leaf.limit_memory(64 << 20, lease_s=1.0)
        during = files[0].read_text()
        seen.append([before.strip(), during.strip()])
        seen.append([str(eventually(lambda: files[0].read_text() == before))])

    spec = ToolSpec(argv=["true"], limits=Limits(memory_bytes=128 << 20))
    assert sandbox.run(spec, on_start=started).exit_status == 0
    assert seen == [[str(128 << 20), str(64 << 20)], ["True"]]


def test_a_lease_without_time_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="lease_s must be positive"):
        sandbox.run(ToolSpec(argv=["true"]), on_start=lambda leaf, pid: leaf.freeze(lease_s=0))


def test_the_none_backend_thaws_by_lease_too(plain: Sandbox) -> None:
    states: list[bool] = []

    def started(leaf: Leaf, pid: int) -> None:
        leaf.freeze(lease_s=2.0)
        states.append(eventually(lambda: _state(pid) == "T", 1.9))
        states.append(eventually(lambda: _state(pid) != "T", 5.0))

    assert plain.run(ToolSpec(argv=["sleep", "0.3"], timeout_s=20), on_start=started).exit_status == 0
    assert states == [True, True]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_watchdog_is_small() -> None:
    code = (
        "import sys; sys.path.append({root!r}); from agentsched.cgroups import watchdog; "
        "print(*(name for name, module in sys.modules.items()"
        " if 'site-packages' in str(getattr(module, '__file__', ''))))"
    )
    root = str(Path(leftovers.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code.format(root=root)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_closing_all_ends_the_watchdog_and_new_sandboxes_work() -> None:
    with Sandbox.open("one") as sandbox:
        guard = sandbox.watchdog_pid
        assert guard is not None
        Runtime.close_all()
        assert not is_running(guard)
        with pytest.raises(SandboxError):
            sandbox.run(ToolSpec(argv=["true"]))
    with Sandbox.open("two") as sandbox:
        assert sandbox.run(ToolSpec(argv=["true"])).exit_status == 0
