"""Waiting for a child process while taking its output: until it ends, is out of time or cancelled.

Where the kernel has pidfds all is waited for in one poll. Elsewhere a thread reads the output.
Neither waits for the output's end: a daemonised grandchild may hold it open for ever.
"""

from __future__ import annotations

import enum
import math
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

_CHUNK = 1 << 16
_PORTABLE_PAUSE_S = 0.01


class Outcome(enum.Enum):
    """Why the waiting ended."""

    EXITED = "exited"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


class Ended(NamedTuple):
    """The main process's end: status, and what it and the children it waited for used."""

    exit_status: int
    signal_number: int
    cpu_s: float
    peak_memory_bytes: int


class Capture:
    """Keeps the first and the last half of ``limit`` bytes; ``on_output`` sees everything."""

    def __init__(self, limit: int, on_output: Callable[[bytes], None] | None) -> None:
        self._head_limit = limit - limit // 2
        self._tail_limit = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._on_output = on_output
        self.dropped = 0

    def take(self, chunk: bytes) -> None:
        """Keep what there is room for, and pass the chunk on."""
        room = self._head_limit - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        # cut rarely: moving the tail for each chunk would cost a copy of it each time
        if len(self._tail) > 2 * self._tail_limit + _CHUNK:
            self._cut()
        if self._on_output is not None:
            self._on_output(chunk)

    def _cut(self) -> None:
        over = len(self._tail) - self._tail_limit
        if over > 0:
            del self._tail[:over]
            self.dropped += over

    def result(self) -> bytes:
        """What was kept, with a line in place of what was dropped."""
        self._cut()
        if not self.dropped:
            return bytes(self._head + self._tail)
        return bytes(self._head) + b"\n[%d bytes dropped]\n" % self.dropped + bytes(self._tail)


class Cancel:
    """Tells a waiting pump, from any thread, to stop."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        self._event = threading.Event()

    def set(self) -> None:
        """Stop the pump. Idempotent."""
        if not self._event.is_set():
            self._event.set()
            os.write(self._writer, b"x")

    def is_set(self) -> bool:
        """Whether it was told to stop."""
        return self._event.is_set()

    def close(self) -> None:
        """Free the pipe; nobody may wait any more."""
        os.close(self.reader)
        os.close(self._writer)


class Ticking(Protocol):
    """Who wants to look at the call now and then: ``tick`` is called once ``due_s`` is
    past (monotonic seconds; inf: never)."""

    due_s: float

    def tick(self) -> None: ...


class Pump:
    """Waits for one process, perhaps several times in turn."""

    def __init__(self, process: subprocess.Popen[bytes], capture: Capture, cancel: Cancel | None) -> None:
        self._process = process
        self._capture = capture
        self._cancel = cancel
        self._ended: Ended | None = None
        self._output = process.stdout.fileno() if process.stdout else None
        self._pidfd = _open_pidfd(process.pid)
        self._reader: threading.Thread | None = None
        if self._output is not None:
            if self._pidfd is None:
                self._reader = threading.Thread(target=self._read_to_end, args=(self._output,), daemon=True)
                self._reader.start()
            else:
                os.set_blocking(self._output, False)

    def wait(
        self, timeout_s: float | None, *, heed_cancel: bool = True, ticking: Ticking | None = None
    ) -> Outcome:
        """Take output until the process ended (it is reaped then), or there is a reason to stop."""
        if self._ended is not None:
            return Outcome.EXITED
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        cancel = self._cancel if heed_cancel else None
        if self._pidfd is None:
            return self._wait_portably(deadline, cancel, ticking)
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if self._output is not None:
            poller.register(self._output, select.POLLIN)
        if cancel is not None:
            poller.register(cancel.reader, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(_pause_ms(deadline, ticking))}
            if self._pidfd in ready:
                self._ended = reap(self._process, 0)
                return Outcome.EXITED
            if cancel is not None and cancel.is_set():
                return Outcome.CANCELLED
            if deadline is not None and time.monotonic() >= deadline:
                return Outcome.TIMED_OUT
            _tick(ticking)
            if self._output in ready and self._output is not None and not self._read_some(self._output):
                poller.unregister(self._output)

    @property
    def ended(self) -> Ended:
        """How the process ended; ``wait`` must have said so."""
        assert self._ended is not None
        return self._ended

    def drain(self) -> None:
        """Take what is left of the output, without waiting for more."""
        if self._reader is not None:
            self._reader.join(timeout=0.2)
        elif self._output is not None:
            while self._read_some(self._output, most=_CHUNK * 16):
                pass

    def close(self) -> None:
        """Close the descriptors. The process must have ended, or is given up."""
        if self._pidfd is not None:
            os.close(self._pidfd)
        if self._process.stdout is not None and (self._reader is None or not self._reader.is_alive()):
            self._process.stdout.close()

    def _read_some(self, fd: int, most: int = _CHUNK) -> bool:
        """Take one chunk; False if there is none."""
        try:
            chunk = os.read(fd, most)
        except BlockingIOError:
            return False
        if chunk:
            self._capture.take(chunk)
        return bool(chunk)

    def _read_to_end(self, fd: int) -> None:
        while self._read_some(fd):
            pass

    def _wait_portably(
        self, deadline: float | None, cancel: Cancel | None, ticking: Ticking | None
    ) -> Outcome:
        while (ended := reap(self._process, os.WNOHANG if hasattr(os, "WNOHANG") else 0)) is None:
            if cancel is not None and cancel.is_set():
                return Outcome.CANCELLED
            if deadline is not None and time.monotonic() >= deadline:
                return Outcome.TIMED_OUT
            _tick(ticking)
            time.sleep(_PORTABLE_PAUSE_S)
        self._ended = ended
        return Outcome.EXITED


def _pause_ms(deadline: float | None, ticking: Ticking | None) -> float | None:
    """How long to wait for something to happen at most, milliseconds; None: for ever."""
    until_s = min(math.inf if deadline is None else deadline, ticking.due_s if ticking else math.inf)
    return max(0.0, (until_s - time.monotonic()) * 1000) if until_s < math.inf else None


def _tick(ticking: Ticking | None) -> None:
    if ticking is not None and time.monotonic() >= ticking.due_s:
        ticking.tick()


def _open_pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None  # a kernel before 5.3, or a seccomp filter


def reap(process: subprocess.Popen[bytes], flags: int) -> Ended | None:
    """Take the ended child's status and usage; None if it still runs."""
    if not hasattr(os, "wait4"):
        code = process.poll()
        return None if code is None else Ended(code & 0xFF, 0, 0.0, 0)
    try:
        pid, status, used = os.wait4(process.pid, flags)
    except ChildProcessError:
        # somebody else waits for all children of this process; the status is theirs
        process.returncode = 255
        return Ended(255, 0, 0.0, 0)
    if pid == 0:
        return None
    code = process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    cpu_s = used.ru_utime + used.ru_stime
    return Ended(code if code >= 0 else 128 - code, max(0, -code), cpu_s, used.ru_maxrss * unit)
