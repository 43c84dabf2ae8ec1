"""A thread apart from the others: prepared once (namespaces, rights), it starts processes for them.

A process inherits from the thread that starts it. What this thread was prepared with is meant to be
inherited; the rest (umask, CPU affinity, niceness) is taken from the caller each time, as if that had started
the process itself. The working folder is not: callers give it by path.

One that stays, for a thread or a namespace made a call is dear where others want the processors: what is new
waits behind all that is there, and the end of a namespace for an RCU grace period.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Inherited(NamedTuple):
    umask: int
    affinity: set[int]
    niceness: int

    @classmethod
    def of_this_thread(cls) -> _Inherited:
        return cls(_umask(), os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0))

    def take_over(self, former: _Inherited) -> None:
        """Have all this in the calling thread, which has its own file system attributes."""
        if self.umask != former.umask:
            os.umask(self.umask)
        if self.affinity != former.affinity:
            os.sched_setaffinity(0, self.affinity)
        if self.niceness != former.niceness:
            os.setpriority(os.PRIO_PROCESS, 0, self.niceness)


def _umask() -> int:
    with open("/proc/thread-self/status", "rb", buffering=0) as file:
        return int(file.read(256).partition(b"Umask:")[2].split(maxsplit=1)[0], 8)


class Errand(Generic[T]):
    """One call on its way to the thread and back; made by who asks for it."""

    def __init__(self, act: Callable[[], T]) -> None:
        self.inherited = _Inherited.of_this_thread()
        self._act = act
        self._done = threading.Lock()
        self._done.acquire()
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self, former: _Inherited) -> None:
        try:
            self.inherited.take_over(former)
            self._results.append(self._act())
        except BaseException as error:  # raised again by who waits
            self._error = error
        finally:
            self._done.release()

    def wait(self) -> T:
        """What the call returned. Raises what it raised. Once."""
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._results[0]


class Apart:
    """``prepare`` is called first, in the thread: its errors are raised here. It must unshare what threads
    share of the file system (CLONE_FS). Not thread-safe, but for waiting for errands."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare = prepare
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._errands: queue.SimpleQueue[Errand[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="agentsched-apart", daemon=True)
        self._thread.start()
        self._put(self._prepare).wait()

    def send(self, act: Callable[[], T]) -> Errand[T]:
        """Have ``act`` called in the thread, in turn."""
        if self._process != os.getpid():
            self._begin()  # a fork takes no threads along
        return self._put(act)

    def _put(self, act: Callable[[], T]) -> Errand[T]:
        errand = Errand(act)
        self._errands.put(errand)
        return errand

    def _serve(self) -> None:
        has = _Inherited.of_this_thread()
        while (errand := self._errands.get()) is not None:
            errand.run(has)
            has = errand.inherited
            del errand  # what it was about must not live until the next one

    def close(self) -> None:
        """End the thread, once it has done what it was sent. Nothing may be sent any more."""
        self._errands.put(None)
