"""Children that end with the process that started them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from agentsched.engines import tied as tied_module
from agentsched.engines.tied import tied

PATIENCE_S = 5.0

pytestmark = pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv")


def ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ended(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"process {pid} went on")
        time.sleep(0.01)


def parent(code: str) -> subprocess.Popen[str]:
    """A process that runs ``code`` and then waits; the code prints the pid of its child."""
    lines = ["import asyncio, signal, subprocess, sys", "from agentsched.engines.tied import tied", code]
    return subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True)


STARTED = """
command = [sys.executable, '-c', 'import time; print("up", flush=True); time.sleep(600)']
child = subprocess.Popen(tied(command, signal.SIGTERM), stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
# Its engine never says that it is ready: it still loads its model.
LOADING = """
from agentsched.engines.process import EngineProcess
engine = "import os, time; print(os.getpid(), file=open(f'/proc/{os.getppid()}/fd/1', 'w')); time.sleep(600)"
asyncio.run(EngineProcess('slow', [sys.executable, '-c', engine]).start())
"""


@pytest.mark.parametrize("code", [STARTED, LOADING], ids=["child", "engine that still loads"])
def test_a_child_ends_with_its_parent(code: str) -> None:
    with parent(code) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert not ended(child)
        process.kill()
    wait_for_end(child)


def test_a_child_whose_parent_is_gone_already_executes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever reads its parent's pid after the parent's death reads another one.
    monkeypatch.setattr(os, "getpid", lambda: 1)
    command = tied([sys.executable, "-c", "print('ran')"], signal.SIGTERM)
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_arguments_and_status_pass_through() -> None:
    code = "import sys; print(sys.argv[1:]); sys.exit(7)"
    odd = ["a b", "$HOME", "'", "", "--", "-x"]
    done = subprocess.run(
        tied([sys.executable, "-c", code, *odd], signal.SIGTERM), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (7, f"{odd}\n")


def test_without_setpriv_the_command_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tied_module, "_setpriv", lambda: None)
    assert tied(["sleep", "1"], signal.SIGTERM) == ["sleep", "1"]
