"""A daemon of its own for one run: fresh process, fresh engine, one policy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentsched.workloads import children
from agentsched.workloads.cores import confine

READY_TIMEOUT_S = 180.0
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DaemonFailed(Exception):
    """The daemon did not start, or ended by itself; the message shows its last words."""


class Daemon:
    """``agentsched serve`` in a process that this one ends."""

    def __init__(self, arguments: Sequence[str], *, folder: Path, core: int) -> None:
        """Start it, with everything but its engine on ``core``. ``folder`` takes its output, and
        must be its own."""
        self.output = folder / "daemon.txt"
        self._ready_file = folder / "ready"
        self._ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "agentsched", "serve", "--port", "0", *arguments]
        self._core = core
        self._process: subprocess.Popen[bytes] = children.start(
            [*command, "--ready-file", str(self._ready_file)], output=self.output
        )

    def wait_ready(self) -> str:
        """The base address, once calls are taken. Raises ``DaemonFailed``."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not (self._ready_file.exists() and (text := self._ready_file.read_text()).endswith("\n")):
            self.check()
            if time.monotonic() > deadline:
                raise DaemonFailed(
                    f"the daemon was not ready within {READY_TIMEOUT_S:.0f} s; it said:\n"
                    f"{children.tail(self.output)}"
                )
            time.sleep(0.05)
        # Only now, and without its children: the engine has a core of its own.
        confine(self._process.pid, self._core)
        self.url = text.strip()
        return self.url

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises ``DaemonFailed`` if the daemon has ended."""
        if self._process.poll() is not None:
            raise DaemonFailed(
                f"the daemon ended with status {self._process.returncode}; it said:\n"
                f"{children.tail(self.output)}"
            )

    def programs(self) -> list[dict[str, Any]]:
        """What the daemon knows of its open programs; empty if it does not answer at once."""
        try:
            with _LOCAL.open(f"{self.url}/agentsched/v1/programs?limit=1000", timeout=2.0) as answer:
                found = json.load(answer)["programs"]
        except OSError:
            return []
        assert isinstance(found, list)
        return found

    def end(self) -> None:
        """End it and wait. May be called twice."""
        children.end([self._process], grace_s=15.0)
