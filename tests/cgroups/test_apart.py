"""Commands that a thread apart starts are as if the caller had started them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentsched.cgroups import Sandbox, SpecRefused, ToolSpec, sealing

pytestmark = pytest.mark.cgroups


@pytest.fixture(autouse=True)
def warm(sandbox: Sandbox) -> None:
    """The thread is there before each test changes something in its own."""
    if not sealing.possible():
        pytest.skip("tools cannot be sealed here: needs root with CAP_SYS_ADMIN, and Linux 5.12")
    sandbox.run(ToolSpec(command="true"))


def test_umask_affinity_and_niceness_are_the_caller_s(sandbox: Sandbox) -> None:
    command = "umask; nice; grep Cpus_allowed_list /proc/self/status"
    before = sandbox.run(ToolSpec(command=command)).text
    seen: list[str] = []

    def call() -> None:
        os.sched_setaffinity(0, {0})
        os.setpriority(os.PRIO_PROCESS, 0, 5)
        seen.extend(sandbox.run(ToolSpec(command=command)).text.split())

    umask = os.umask(0o027)
    try:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    finally:
        os.umask(umask)
    assert seen == ["0027", "5", "Cpus_allowed_list:", "0"]
    assert sandbox.run(ToolSpec(command=command)).text == before


def test_the_folder_is_the_caller_s(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sandbox.run(ToolSpec(command="pwd")).text == f"{tmp_path}\n"
    assert sandbox.run(ToolSpec(command="pwd", cwd="inner")).text == f"{tmp_path}/inner\n"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SpecRefused, match="removed"):
        sandbox.run(ToolSpec(command="pwd"))


def test_what_is_mounted_later_is_seen(sandbox: Sandbox, tmp_path: Path) -> None:
    command = f"cat {tmp_path}/file"
    assert sandbox.run(ToolSpec(command=command)).exit_status != 0
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], check=True)
    try:
        (tmp_path / "file").write_text("mounted\n")
        assert sandbox.run(ToolSpec(command=command)).text == "mounted\n"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert sandbox.run(ToolSpec(command=command)).exit_status != 0


def test_the_thread_is_one_for_all_calls(sandbox: Sandbox) -> None:
    before = threading.active_count()
    for _ in range(5):
        sandbox.run(ToolSpec(command="true"))
    assert threading.active_count() == before


def test_a_forked_process_gets_one_of_its_own() -> None:
    code = """
import os, sys
from agentsched.cgroups import Sandbox, ToolSpec
with Sandbox.open("parent") as sandbox:
    sandbox.run(ToolSpec(command="true"))
    child = os.fork()
    if child == 0:
        with Sandbox.open("child") as own:
            sys.stdout.write(own.run(ToolSpec(command="echo forked")).text)
            sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    sys.stdout.write(sandbox.run(ToolSpec(command="echo parent")).text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "forked\nparent\n", done.stderr
