"""Child processes that do not outlive us: started with a tie to this process, and ended by their id."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentsched.engines.tied import tied

TERM_GRACE_S = 5.0


def start(
    command: Sequence[str], *, output: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, its output going to a file.

    A session of its own, so that Ctrl-C reaches only us and we end things in order; and tied to us,
    so that it ends should this process be killed. Must be called from a thread that lives as long as
    the child may: that tie is to the thread.
    """
    with output.open("wb") as file:
        return subprocess.Popen(
            tied(command, signal.SIGTERM),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )


def end(children: Sequence[subprocess.Popen[bytes]], *, grace_s: float = TERM_GRACE_S) -> None:
    """Terminate what still runs, kill what does not end within ``grace_s``, and wait for all."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + grace_s
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of an output file, to show with an error."""
    text = path.read_text(errors="replace").strip() if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:]) or "(nothing)"
