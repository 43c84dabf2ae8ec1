"""A daemon that is killed again and again, and what it left behind each time."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from agentsched.daemon.charges import DELIVERED, Charges
from agentsched.daemon.state.database import FILE

READY_S = 60.0
ORPHAN_S = 5.0
_POLL_S = 0.01


class Victim:
    """``agentsched serve`` with state and log in ``folder``, always on one port."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.state, self.log = folder / "state", folder / "events.jsonl"
        self.output = folder / "daemon.txt"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "agentsched", "serve", "--port", str(self.port)]
        self._command += [
            # Runs that their agents give up stay known: what is over by its silence is another matter.
            "--idle-floor",
            "3600",
            "--state",
            str(self.state),
            "--log",
            str(self.log),
            "--log-files",
            "100000",
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin a life. What it prints is added to ``output``."""
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)

    async def ready(self, http: aiohttp.ClientSession) -> list[dict[str, Any]]:
        """The programs that it knows as soon as it answers."""
        assert self._process is not None
        async with asyncio.timeout(READY_S):
            while True:
                if self._process.poll() is not None:
                    raise RuntimeError(f"the daemon ended by itself:\n{self.output.read_text()[-4000:]}")
                try:
                    async with http.get(f"{self.url}/agentsched/v1/programs") as answer:
                        return list((await answer.json())["programs"])
                except aiohttp.ClientError:
                    await asyncio.sleep(0.02)

    async def kill(self) -> list[int]:
        """End it as ``kill -9`` does; the processes of it that stay."""
        assert self._process is not None
        children = _children(self._process.pid)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for _ in range(round(ORPHAN_S / _POLL_S)):
            if not any(map(_alive, children)):
                break
            await asyncio.sleep(_POLL_S)
        return [pid for pid in children if _alive(pid)]

    def end(self) -> int:
        """End it in order; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=READY_S)

    def account(self) -> Charges:
        """What all tenants were charged, by the file as it lies there. The daemon must not run."""
        if not (self.state / FILE).exists():
            return Charges()
        # Of a copy, since looking at it would mend what the next daemon has to mend by itself.
        with tempfile.TemporaryDirectory() as folder:
            for path in self.state.glob(f"{FILE}*"):
                shutil.copy(path, folder)
            connection = sqlite3.connect(Path(folder) / FILE)
            try:
                rows = connection.execute("SELECT value FROM records WHERE kind = 'charges'").fetchall()
            except sqlite3.OperationalError:  # killed before it had a schema
                rows = []
            finally:
                connection.close()
        total = Charges()
        for (value,) in rows:
            one = msgspec.json.decode(value, type=Charges)
            for field in DELIVERED:
                setattr(total, field, getattr(total, field) + getattr(one, field))
        return total


def _children(pid: int) -> list[int]:
    """All processes below, also those of other sessions."""
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [below for child in own for below in _children(child)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
