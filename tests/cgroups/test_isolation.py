"""A program's own view of the disk: what its tools may do there, and what the host and others see of it."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentsched.cgroups import (
    CommandUnusable,
    HostRefused,
    Isolation,
    Limits,
    Sandbox,
    SpecRefused,
    ToolSpec,
    hierarchy,
    isolation,
    sealing,
)

pytestmark = pytest.mark.cgroups

MIB = 1 << 20


@pytest.fixture(scope="module")
def possible() -> None:
    if why := isolation.missing():
        pytest.skip(why)


@pytest.fixture
def isolated(possible: None, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox whose calls may write 16 MiB in all."""
    with Sandbox.open(request.node.name, isolation=Isolation(disk_bytes=16 * MIB)) as opened:
        yield opened


def shell(sandbox: Sandbox, command: str, **asked: object) -> str:
    result = sandbox.run(ToolSpec(command=command, **asked))  # type: ignore[arg-type]
    assert result.exit_status == 0, result.text
    return result.text


def test_later_calls_see_what_earlier_ones_wrote_and_the_host_does_not(
    isolated: Sandbox, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("host\n")
    shell(isolated, "echo tool > file; mkdir new; mv new newer; echo x > newer/x", cwd=str(tmp_path))
    assert shell(isolated, "cat file newer/x", cwd=str(tmp_path)) == "tool\nx\n"
    assert file.read_text() == "host\n"
    assert os.listdir(tmp_path) == ["file"]


def test_each_program_has_its_own(isolated: Sandbox, tmp_path: Path) -> None:
    shell(isolated, "echo mine > file", cwd=str(tmp_path))
    with Sandbox.open("other", isolation=Isolation()) as other:
        assert shell(other, "ls", cwd=str(tmp_path)) == ""


def test_a_disk_filler_hits_its_own_bound_and_is_told(isolated: Sandbox, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    filler = "head -c 1000000000 /dev/zero > fill; echo; df -B1 --output=avail / | tail -1"
    result = isolated.run(ToolSpec(command=filler, cwd=str(tmp_path)))
    assert "No space left on device" in result.text
    assert result.text.split()[-1] == "0"
    disk = result.feedback.disk
    assert disk is not None
    assert (disk.full, disk.limit_bytes) == (True, 16 * MIB)
    assert "its disk was full" in result.feedback.note.lower()
    assert "16 MiB" in result.feedback.note
    # the host lost nothing to it, and a neighbour writes
    assert shutil.disk_usage(tmp_path).free > free - 16 * MIB
    with Sandbox.open("neighbour", isolation=Isolation(disk_bytes=16 * MIB)) as neighbour:
        shell(neighbour, "head -c 10000000 /dev/zero > fill", cwd=str(tmp_path))
    # and so does the program itself, once it has made room
    assert shell(isolated, "rm fill; echo fine > file; cat file", cwd=str(tmp_path)) == "fine\n"
    assert isolated.run(ToolSpec(command="true")).feedback.note == ""


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm", "/var/tmp", "/root"])
def test_the_bound_holds_wherever_it_writes(isolated: Sandbox, place: str) -> None:
    result = isolated.run(ToolSpec(command=f"head -c 1000000000 /dev/zero > {place}/agentsched-fill"))
    assert "No space left on device" in result.text
    assert not Path(place, "agentsched-fill").exists()


def test_many_small_files_are_bounded_as_well(isolated: Sandbox, tmp_path: Path) -> None:
    code = "import itertools\nfor n in itertools.count(): open(f'f{n}', 'w').close()"
    result = isolated.run(ToolSpec(argv=[sys.executable, "-S", "-c", code], cwd=str(tmp_path), timeout_s=60))
    assert "No space left on device" in result.text


def test_what_it_writes_is_charged_to_it(isolated: Sandbox, tmp_path: Path) -> None:
    if not isolated.capabilities.memory_limit:
        pytest.skip("no memory limits here")
    spec = ToolSpec(command="head -c 12000000 /dev/zero > fill", cwd=str(tmp_path))
    assert isolated.run(spec).usage.peak_memory_bytes > 12_000_000


def test_a_folder_that_is_writable_is_the_host_s(possible: None, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    asked = Isolation(disk_bytes=MIB, writable=(str(inner),))
    with Sandbox.open("writes", isolation=asked) as sandbox:
        shell(sandbox, "echo a > inner/a; echo b > b", cwd=str(tmp_path))
    assert (inner / "a").read_text() == "a\n"
    assert sorted(os.listdir(tmp_path)) == ["inner"]


def test_with_and_without_network(possible: None) -> None:
    for network in (True, False):
        with Sandbox.open("net", isolation=Isolation(network=network)) as sandbox:
            named = shell(sandbox, "readlink /proc/self/ns/net").strip()
            assert (named == os.readlink("/proc/self/ns/net")) is network


def test_it_sees_only_its_own_processes(isolated: Sandbox) -> None:
    seen = shell(isolated, "echo /proc/[0-9]*").split()
    assert len(seen) < 6
    assert isolated.run(ToolSpec(command=f"kill -0 {os.getpid()}")).exit_status != 0


ATTEMPTS = [
    "echo 0 > {root}/cgroup.procs",
    "mkdir {root}/agentsched-escape",
    "mount -o remount,rw {root}",
    "umount {root}",
    "umount -l /",
    "mount -t tmpfs none /mnt",
    "mknod disk b 254 0 && cat disk",
    "cat /proc/sys/kernel/hostname > /proc/sys/kernel/hostname",
    "ls /proc/1/root/proc/1/root && echo 0 > /proc/1/root{root}/cgroup.procs",
    "nsenter -t 1 -m true",
]


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_it_can_neither_leave_its_leaf_nor_reach_the_disk(isolated: Sandbox, attempt: str) -> None:
    for root in hierarchy.mount_points():
        result = isolated.run(ToolSpec(command=attempt.format(root=root) + " 2>&1 && echo DONE"))
        assert "DONE" not in result.text
        assert not Path(root, "agentsched-escape").exists()


def test_it_runs_in_its_leaf_and_is_limited_there(isolated: Sandbox) -> None:
    if not isolated.capabilities.memory_limit:
        pytest.skip("no memory limits here")
    held = ToolSpec(
        argv=[sys.executable, "-S", "-c", "x = bytearray(200 << 20)"], limits=Limits(memory_bytes=64 * MIB)
    )
    assert isolated.run(held).oom_killed
    stays = isolated.run(ToolSpec(command="setsid sleep 1000 & echo $!"))
    assert stays.text.strip().isdigit()
    assert shell(isolated, f"kill -0 {stays.text.strip()} 2>/dev/null || echo gone") == "gone\n"


def test_a_time_limit_and_signals_are_told_as_ever(isolated: Sandbox) -> None:
    assert isolated.run(ToolSpec(command="sleep 100", timeout_s=0.3)).timed_out
    killed = isolated.run(ToolSpec(command="kill -9 $$"))
    assert (killed.exit_status, killed.reason) == (137, "killed by SIGKILL")


def test_commands_are_looked_up_inside(isolated: Sandbox, tmp_path: Path) -> None:
    shell(isolated, "printf '#!/bin/sh\\npwd\\n' > made; chmod +x made; mkdir there", cwd=str(tmp_path))
    there = isolated.run(ToolSpec(argv=["../made"], cwd=f"{tmp_path}/there"))
    assert there.text == f"{tmp_path}/there\n"
    assert isolated.run(ToolSpec(command="pwd")).text == f"{os.getcwd()}\n"
    with pytest.raises(CommandUnusable):
        isolated.run(ToolSpec(argv=["./never"], cwd=str(tmp_path)))
    with pytest.raises(SpecRefused, match="cwd"):
        isolated.run(ToolSpec(argv=["true"], cwd=f"{tmp_path}/nowhere"))
    with pytest.raises(SpecRefused, match="nesting"):
        isolated.run(ToolSpec(argv=["true"], nesting=True))


def test_without_control_groups_it_works_too(possible: None, tmp_path: Path) -> None:
    with Sandbox.open("plain", backend="none", isolation=Isolation(disk_bytes=MIB)) as sandbox:
        result = sandbox.run(ToolSpec(command="head -c 9999999 /dev/zero > fill", cwd=str(tmp_path)))
    assert "No space left" in result.text
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_of_it(possible: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = Path("/proc/self/mountinfo").read_text()
    with ExitStack() as opened:
        for _ in range(3):
            sandbox = opened.enter_context(Sandbox.open("left", isolation=Isolation()))
            shell(sandbox, "sleep 1000 & echo on")
        assert os.listdir(tmp_path) == []
    assert Path("/proc/self/mountinfo").read_text() == before
    held = subprocess.run(["pgrep", "-fc", str(tmp_path)], capture_output=True, text=True)
    assert held.stdout.strip() == "0"


def test_a_killed_runtime_takes_it_along(possible: None) -> None:
    code = """
import sys, time
from agentsched.cgroups import Isolation, Sandbox, ToolSpec
sandbox = Sandbox.open("killed", isolation=Isolation(disk_bytes=1 << 20))
tell = lambda leaf, pid: print(sandbox.isolated.init, flush=True)
sandbox.run(ToolSpec(command="sleep 1000"), on_start=tell)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as runtime:
        assert runtime.stdout is not None
        first = os.pidfd_open(int(runtime.stdout.readline()))
        runtime.kill()
    try:
        assert select.select([first], [], [], 20)[0], "the place outlives its runtime"
    finally:
        os.close(first)


def test_without_bwrap_it_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    if not sealing.possible():
        pytest.skip("needs root")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostRefused, match="apt-get install bubblewrap"):
        Sandbox.open("refused", isolation=Isolation())


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(SpecRefused, match="disk_bytes"):
        Isolation(disk_bytes=0)
    with pytest.raises(SpecRefused, match="nowhere"):
        Isolation(writable=("/nowhere",))
