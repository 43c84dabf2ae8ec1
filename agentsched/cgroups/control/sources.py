"""What notices, between two looks of the controller, that memory of tool calls needs a look now.

``Source`` is the contract: anything with a descriptor that becomes readable can be one (a ring buffer of
BPF programs, for example). ``Events`` is the kernel's own: on v1 an eventfd when a folder's usage crosses a
threshold, and when a call stands at its cap; on v2 a notice when memory.high of a folder is crossed;
everywhere the machine's memory pressure (PSI; where the kernel allows only windows of 2 s it comes late, and
is a last resort). ``Polling`` reads usage at times.
"""

from __future__ import annotations

import os
import select
from typing import Protocol

from agentsched.cgroups import tree

_PSI_FILE = "/proc/pressure/memory"
_PSI_TRIGGERS = ("some 50000 500000", "some 200000 2000000")


class Source(Protocol):
    """Tells which folders need a look. Used by one thread. Watching what is watched already replaces it;
    forgetting what is not watched, or folders that vanish, is no error."""

    name: str
    period_s: float | None
    """``take`` must be called so often, seconds; None: its descriptor tells when."""

    def fileno(self) -> int:
        """Readable when there is something to take; -1 with a period."""
        ...

    def watch_growth(self, folder: str, limit_bytes: int) -> None:
        """Tell when the memory of all that is under ``folder`` (of the memory hierarchy) exceeds this."""
        ...

    def watch_stop(self, folder: str) -> None:
        """Tell when a task in the leaf ``folder`` (of the memory hierarchy) waits at its cap."""
        ...

    def forget(self, folder: str) -> None:
        """Do not watch ``folder`` any more."""
        ...

    def take(self) -> set[str]:
        """Folders that something happened to since the last time; "" stands for the whole machine."""
        ...

    def close(self) -> None: ...


class Events:
    """See ``Source``. On v1 folders; what v2 folders tell comes by ``memory.events``."""

    name = "events"
    period_s: float | None = None

    def __init__(self, *, pressure: bool = True) -> None:
        self._epoll = select.epoll()
        self._folders: dict[int, str] = {}
        self._watched: dict[tuple[str, str], int] = {}
        self._psi = self._open_psi() if pressure else None

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch_growth(self, folder: str, limit_bytes: int) -> None:
        usage = f"{folder}/memory.usage_in_bytes"
        if os.path.exists(usage):
            self._watch_v1(folder, "growth", usage, f" {limit_bytes}")
        elif (folder, "events") not in self._watched:
            # the threshold itself is memory.high, which is set by whoever holds a lease for it
            self._watch_v2(folder)

    def watch_stop(self, folder: str) -> None:
        if (folder, "stop") not in self._watched and os.path.exists(f"{folder}/memory.oom_control"):
            self._watch_v1(folder, "stop", f"{folder}/memory.oom_control", "")
        elif (folder, "events") not in self._watched and os.path.exists(f"{folder}/memory.events"):
            self._watch_v2(folder)

    def forget(self, folder: str) -> None:
        for kind in ("growth", "stop", "events"):
            self._unwatch(folder, kind)

    def take(self) -> set[str]:
        found = set()
        for fd, _ in self._epoll.poll(0):
            if fd == self._psi:
                found.add("")
            elif (folder := self._folders.get(fd)) is not None:
                found.add(folder)
                if self._watched.get((folder, "events")) == fd:
                    os.pread(fd, 4096, 0)
                else:
                    os.eventfd_read(fd)
        return found

    def close(self) -> None:
        for folder, kind in list(self._watched):
            self._unwatch(folder, kind)
        if self._psi is not None:
            os.close(self._psi)
        self._epoll.close()

    def _watch_v1(self, folder: str, kind: str, file: str, argument: str) -> None:
        self._unwatch(folder, kind)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            watched = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                tree.write(f"{folder}/cgroup.event_control", f"{event} {watched}{argument}")
            finally:
                os.close(watched)
        except OSError:
            os.close(event)
            if os.path.isdir(folder):
                raise
            return  # the folder vanished meanwhile
        self._add(folder, kind, event, select.EPOLLIN)

    def _watch_v2(self, folder: str) -> None:
        try:
            fd = os.open(f"{folder}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        os.read(fd, 4096)  # what happened before is no news
        self._add(folder, "events", fd, select.EPOLLPRI)

    def _add(self, folder: str, kind: str, fd: int, events: int) -> None:
        self._epoll.register(fd, events)
        self._folders[fd] = folder
        self._watched[folder, kind] = fd

    def _unwatch(self, folder: str, kind: str) -> None:
        fd = self._watched.pop((folder, kind), None)
        if fd is not None:
            del self._folders[fd]
            self._epoll.unregister(fd)
            os.close(fd)

    def _open_psi(self) -> int | None:
        for trigger in _PSI_TRIGGERS:
            try:
                fd = os.open(_PSI_FILE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                return None  # a kernel without PSI: the rest goes on
            try:
                os.write(fd, trigger.encode() + b"\0")
                self._epoll.register(fd, select.EPOLLPRI)
            except OSError:
                os.close(fd)  # shorter windows need a right that not everybody has
                continue
            return fd
        return None


class Polling:
    """See ``Source``: reads usage every ``period_s``, and cannot tell a stop from usage near a cap."""

    name = "polling"

    def __init__(self, period_s: float) -> None:
        self.period_s: float | None = period_s
        self._limits: dict[str, int] = {}
        self._stops: set[str] = set()

    def fileno(self) -> int:
        return -1

    def watch_growth(self, folder: str, limit_bytes: int) -> None:
        self._limits[folder] = limit_bytes

    def watch_stop(self, folder: str) -> None:
        self._stops.add(folder)

    def forget(self, folder: str) -> None:
        self._limits.pop(folder, None)
        self._stops.discard(folder)

    def take(self) -> set[str]:
        grown = {folder for folder, limit in self._limits.items() if _used(folder) > limit}
        return grown | {
            folder
            for folder in self._stops
            if "under_oom 1" in tree.read_if_there(f"{folder}/memory.oom_control")
        }

    def close(self) -> None:
        """Nothing is open."""


def _used(folder: str) -> int:
    for name in ("memory.usage_in_bytes", "memory.current"):
        if os.path.exists(file := f"{folder}/{name}"):
            return int(tree.read_if_there(file) or 0)
    return 0


def open_source(wanted: str = "") -> Source:
    """``events``, ``polling:SECONDS``, or the best there is. Raises ``ValueError`` for another name."""
    kind, _, period = wanted.partition(":")
    if kind == "polling":
        return Polling(float(period or 0.1))
    if kind not in ("", "events"):
        raise ValueError(f"no such source of events: {wanted!r}; there are events and polling:SECONDS")
    return Events()
