"""The runtime's end of the watchdog: starts it, tells it of leases, lets it go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import msgspec

from agentsched.cgroups.contract import HostRefused, Undo
from agentsched.cgroups.watchdog import IGNORED

_BOOT = "import sys; sys.path.append({root!r}); from agentsched.cgroups.watchdog import main; main()"
_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Guard:
    """Keeps one watchdog process for an instance. Thread-safe. See ``contract.Leases``."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._arguments: list[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def watch(self, roots: list[str], mark: str = "") -> None:
        """Start the watchdog over these folders and over processes with this mark."""
        with self._lock:
            self._arguments = [self._instance, mark, *roots]
            self._start()

    @property
    def pid(self) -> int | None:
        """The watchdog's process; None if there is none."""
        return self._process.pid if self._process else None

    def check(self) -> None:
        """Start another watchdog if the one that was there died."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._restart()

    def hold(self, key: str, lease_s: float, undo: Undo) -> None:
        """Have ``undo`` carried out after ``lease_s``, unless it is renewed or dropped before."""
        if not lease_s > 0:
            raise ValueError(f"lease_s must be positive, got {lease_s}")
        order = {
            "hold": key,
            "until": time.monotonic() + lease_s,
            "writes": undo.writes,
            "resume": undo.resume,
        }
        with self._lock:
            self._lines[key] = msgspec.json.encode(order) + b"\n"
            self._send(self._lines[key])

    def drop(self, key: str) -> None:
        """Forget what is held under ``key``."""
        with self._lock:
            if self._lines.pop(key, None) is not None:
                self._send(msgspec.json.encode({"drop": key}) + b"\n")

    def close(self, *, wait: bool) -> None:
        """Let the watchdog go: it removes what is left and ends, ``wait`` or not for that."""
        with self._lock:
            process, self._process, self._arguments = self._process, None, None
            if process is None or process.stdin is None:
                return
            process.stdin.close()
            if wait:
                process.wait(timeout=90)
            elif process.poll() is None:
                # it ends by itself a moment after this process, whose parent then inherits it
                process.returncode = 0

    def forsake(self) -> None:
        """In a forked child: the watchdog is the parent's, so only let go of the pipe."""
        if self._process is not None and self._process.stdin is not None:
            self._process.returncode = 0
            self._process.stdin.close()
        self._process = self._arguments = None

    def _start(self) -> None:
        if self._arguments is None:
            return
        if not sys.executable:
            raise HostRefused("no Python interpreter to run the watchdog with (sys.executable is empty)")
        boot = _BOOT.format(root=_PACKAGE_ROOT)
        # blocked signals are inherited: none may hit the watchdog before it has learned to ignore them
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {getattr(signal, name) for name in IGNORED})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", boot, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                bufsize=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _restart(self) -> None:
        import logging

        logging.getLogger(__name__).warning(
            "the sandbox watchdog of %s died; starting another", self._instance
        )
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
        self._start()
        for line in self._lines.values():
            self._write(line)

    def _send(self, line: bytes) -> None:
        if self._process is None:
            raise HostRefused("there is no watchdog, so nothing can be leased")
        try:
            self._write(line)
        except BrokenPipeError:
            self._restart()

    def _write(self, line: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(line)
