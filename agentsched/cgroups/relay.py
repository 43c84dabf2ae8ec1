"""Passes a command's output on to this process's own stdout and stderr, and looks at it meanwhile.

Only for outputs that are no terminals: a command that has a terminal keeps it, since it would print
otherwise without. Where both go to one place they share one pipe, so that their order stays.
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


class Relay:
    """``targets``: what the command's stdout and stderr are to be; None: this process's own. ``start``
    comes next, unless that failed before, and ``finish`` last."""

    def __init__(self, on_output: Callable[[bytes], None]) -> None:
        self._on_output = on_output
        self._stop, self._stopper = os.pipe()
        self._threads: list[threading.Thread] = []
        self._writers: list[int] = []
        self.targets = self._open()

    def _open(self) -> tuple[int | None, int | None]:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        out, err = _fit(1), _fit(2)
        first = self._pipe(1) if out else None
        if not err:
            return first, None
        return first, first if out and os.path.sameopenfile(1, 2) else self._pipe(2)

    def _pipe(self, target: int) -> int:
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

    def _pass_on(self, reader: int, target: int) -> None:
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
                self._on_output(chunk)
                _write(target, chunk)
        except OSError:
            return  # nobody reads any more: the command learns it from its own pipe, which ends with this
        finally:
            os.close(reader)


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
