"""What a tool may do to get away or to take all, and does not: each for real.

Double forks and ``setsid`` are in ``test_running``, memory bombs in ``test_control`` and
``test_usage_and_limits``.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import pytest

from agentsched.cgroups import Limits, Sandbox, ToolSpec, hierarchy, sealing, tree
from agentsched.cgroups.contract import MOST_PIDS

pytestmark = pytest.mark.cgroups


@pytest.fixture
def sealed(sandbox: Sandbox) -> Sandbox:
    """A sandbox whose tools are kept from control group files."""
    if not sealing.possible():
        pytest.skip("tools cannot be sealed here: needs root with CAP_SYS_ADMIN, and Linux 5.12")
    return sandbox


@pytest.mark.full_v2
def test_a_fork_bomb_ends_with_its_call_and_others_run(sandbox: Sandbox) -> None:
    bomb = "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1; echo over"
    result = sandbox.run(ToolSpec(command=bomb, limits=Limits(pids=100), timeout_s=20))
    assert result.usage.wall_s < 20
    assert sandbox.run(ToolSpec(command="echo fine")).text == "fine\n"


def test_ten_thousand_threads_are_too_many_and_said_to_the_tool(sandbox: Sandbox) -> None:
    code = """
import threading
threading.stack_size(1 << 16)
done = threading.Event()
count = 0
try:
    for count in range(10_000):
        threading.Thread(target=done.wait, daemon=True).start()
except RuntimeError as error:
    print(count, error)
import os
os._exit(0)
"""
    result = sandbox.run(ToolSpec(argv=[sys.executable, "-S", "-c", code], timeout_s=60))
    count, _, error = result.text.partition(" ")
    assert MOST_PIDS // 2 < int(count) <= MOST_PIDS
    assert "can't start new thread" in error


def test_ten_gigabytes_of_output_take_no_memory(sandbox: Sandbox) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spec = ToolSpec(command="head -c 10000000000 /dev/zero", max_output_bytes=1 << 16, timeout_s=120)
    result = sandbox.run(spec)
    assert (result.exit_status, result.dropped_output_bytes) == (0, 10_000_000_000 - (1 << 16))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_one_that_stops_itself_ends_at_its_time(sandbox: Sandbox) -> None:
    result = sandbox.run(ToolSpec(command="echo now; kill -STOP $$; echo never", timeout_s=0.5))
    assert (result.text, result.timed_out) == ("now\n", True)


def test_one_that_ignores_signals_ends_at_its_time(sandbox: Sandbox) -> None:
    command = "trap '' TERM INT HUP QUIT; echo deaf; sleep 300; sleep 300"
    began_s = time.monotonic()
    result = sandbox.run(ToolSpec(command=command, timeout_s=0.5))
    assert (result.text, result.timed_out) == ("deaf\n", True)
    assert time.monotonic() - began_s < 10


ATTEMPTS = [
    "echo 0 > {root}/cgroup.procs",
    "mkdir {root}/agentsched-escape",
    "echo $$ > /proc/{pid}/root{root}/cgroup.procs",
    "mount -o remount,rw {root}",
    "umount {root}",
    "nsenter -t {pid} -m sh -c 'echo 0 > {root}/cgroup.procs'",
    "mount -t tmpfs none /mnt",
    "unshare -m true",
]


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_tool_of_root_cannot_leave_its_leaf(sealed: Sandbox, attempt: str) -> None:
    for root in hierarchy.mount_points():
        command = attempt.format(root=root, pid=os.getpid()) + " 2>&1 && echo DONE"
        result = sealed.run(ToolSpec(command=command))
        assert "DONE" not in result.text
        assert result.exit_status != 0
        assert not Path(root, "agentsched-escape").exists()


@pytest.mark.full_v2
def test_a_tool_of_root_cannot_change_its_leaf(sealed: Sandbox) -> None:
    tried: list[str] = []

    def attempt(_: bytes) -> None:
        (leaf,) = sealed.leaves().values()
        tried.extend(leaf.entries())

    # it learns its own folders from the kernel, as any tool can
    command = """
echo up
for line in $(grep -v name= /proc/self/cgroup); do
    kind=${line#*:}; path=${kind#*:}; kind=${kind%%:*}
    folder=/sys/fs/cgroup/${kind:-unified}$path
    [ -d "$folder" ] || continue
    for file in memory.limit_in_bytes memory.max cgroup.procs pids.max cgroup.freeze; do
        [ -e "$folder/$file" ] && echo 1 2>/dev/null > "$folder/$file" && echo CHANGED $file
    done
done
exit 0
"""
    result = sealed.run(ToolSpec(command=command), on_output=attempt)
    assert tried
    assert "CHANGED" not in result.text


def test_with_nesting_a_tool_may_have_sandboxes_of_its_own(sealed: Sandbox) -> None:
    code = "from agentsched.cgroups import *\nwith Sandbox.open() as s: print(s.capabilities.backend)"
    for nesting in (True, False):
        spec = ToolSpec(argv=[sys.executable, "-c", code], nesting=nesting)
        expected = sealed.capabilities.backend if nesting else "none"
        assert sealed.run(spec).text.split()[-1] == expected


def test_sealing_leaves_this_process_as_it_was(sealed: Sandbox) -> None:
    before = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/status").read_text()
    sealed.run(ToolSpec(command="true"))
    assert Path("/proc/self/mountinfo").read_text() == before[0]
    caps = [line for line in before[1].splitlines() if line.startswith("Cap")]
    now = Path("/proc/self/status").read_text()
    assert [line for line in now.splitlines() if line.startswith("Cap")] == caps
    assert any(os.access(f"{root}/cgroup.procs", os.W_OK) for root in hierarchy.mount_points())
    assert tree.read("/proc/self/comm")
