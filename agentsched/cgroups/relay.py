"""Pipes of the sandbox's own through which a command's output is looked at.

``Relay``: passes it on to this process's own stdout and stderr. Only for outputs that are no terminals: a
command that has a terminal keeps it, since it would print otherwise without. Where both go to one place
they share one pipe, so that their order stays. ``Tap``: takes a copy of what a command writes there.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable

_CHUNK = 1 << 16
_PIPE_CHUNKS = 32
"""Once the command has ended no more is passed on than a pipe holds, if a stray process goes on writing."""


class Pipes:
    """Pipes that are read by a thread each. ``start`` comes next, unless that failed before, and ``finish``
    last."""

    def __init__(self, on_output: Callable[[bytes], None] | None) -> None:
        self._on_output = on_output
        self._stop, self._stopper = os.pipe()
        self._threads: list[threading.Thread] = []
        self._writers: list[int] = []

    def _pipe(self, target: int | None) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self._writers.append(writer)
        thread = threading.Thread(target=self._pass_on, args=(reader, target), daemon=True)
        self._threads.append(thread)
        return writer

    def start(self) -> None:
        """The command has its ends; from now on its output is passed on."""
        self._close_writers()
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Pass on what is left, without waiting for those who hold the output open."""
        self._close_writers()
        os.close(self._stopper)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        os.close(self._stop)

    def _close_writers(self) -> None:
        for writer in self._writers:
            os.close(writer)
        self._writers.clear()

    def _pass_on(self, reader: int, target: int | None) -> None:
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        poller.register(self._stop, select.POLLIN)
        left = _PIPE_CHUNKS
        try:
            while left:
                stopping = any(fd == self._stop for fd, _ in poller.poll())
                left -= stopping
                try:
                    chunk = os.read(reader, _CHUNK)
                except BlockingIOError:
                    if stopping:
                        return
                    continue
                if not chunk:
                    return
                if self._on_output is not None:
                    self._on_output(chunk)
                if target is not None:
                    _write(target, chunk)
        except OSError:
            return  # nobody reads any more: the command learns it from its own pipe, which ends with this
        finally:
            os.close(reader)


class Relay(Pipes):
    """``targets``: what the command's stdout and stderr are to be; None: this process's own."""

    def __init__(self, on_output: Callable[[bytes], None] | None) -> None:
        super().__init__(on_output)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        first = self._pipe(1) if _fit(1) else None
        second = None
        if _fit(2):
            second = first if first is not None and os.path.sameopenfile(1, 2) else self._pipe(2)
        self.targets = first, second


class Tap(Pipes):
    """``fd``: where the command may write what is to be looked at; it must be passed on to it."""

    def __init__(self, on_output: Callable[[bytes], None]) -> None:
        super().__init__(on_output)
        self.fd = self._pipe(None)


def _fit(fd: int) -> bool:
    """Whether the descriptor is open, and no terminal."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return not os.isatty(fd)


def _write(fd: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            select.select([], [fd], [])
