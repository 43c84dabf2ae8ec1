"""The source of facts where there is no BPF: cgroup files and /proc, looked at now and then.

What begins and ends between two looks is never seen, and what a process had used when it was last looked at
is all that is known of it after its end. CPU time and OOM kills are the kernel's own counts, and exact.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import NamedTuple

from agentsched.cgroups.bpf import looking
from agentsched.cgroups.bpf.facts import Event, Executed, Exited, Facts, Forked, Threads
from agentsched.cgroups.contract import HostRefused, Leaf, Unsupported

INTERVAL_S = 0.02

_DOING = {"R": "running", "D": "waiting"}  # /proc does not tell ready from running
_LOST = (
    f"processes that live less than {INTERVAL_S * 1000:.0f} ms are not seen",
    "how a process ended",
    "time asleep and time blocked",
    "time of reclaim: what PSI says of memory stands in for it",
    "time in block devices: what PSI says of I/O stands in for it",
)


class _Used(NamedTuple):
    """What a process had used when it was last looked at."""

    ready_s: float = 0.0
    page_faults: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


class _Watched:
    """One leaf. ``used``: by process, by number and start time."""

    def __init__(self, leaf: Leaf, number: int) -> None:
        self.leaf, self.number = leaf, number
        self.used: dict[tuple[int, int], _Used] = {}
        self.counts: Counter[str] = Counter()


class _Known(NamedTuple):
    """A process that was seen: start time, leaf and words."""

    started: int
    watched: _Watched
    words: tuple[str, ...]


class PolledSource:
    """See ``facts.Source``."""

    name = "polling"
    lost = _LOST

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._watched: dict[int, _Watched] = {}
        self._known: dict[int, _Known] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def watch(self, leaf: Leaf) -> None:
        number = leaf.cgroup_id
        if number is None:
            raise HostRefused("leaves are told apart by their cgroup v2, and this backend has none")
        with self._lock:
            self._watched[id(leaf)] = _Watched(leaf, number)

    def forget(self, leaf: Leaf) -> None:
        with self._lock:
            self._watched.pop(id(leaf), None)

    def facts(self, leaf: Leaf) -> Facts:
        with self._lock:
            watched = self._watched.get(id(leaf))
            if watched is None:
                raise HostRefused("this leaf is not watched")
            threads = _look(watched)
            used = list(watched.used.values())
            counts = dict(watched.counts)
        try:
            pressure = leaf.pressure()
        except Unsupported:
            pressure = None
        return Facts(
            running_s=leaf.usage().cpu_s,
            oom_kills=leaf.oom_kills(),
            threads=threads,
            forks=counts.get("forks", 0),
            execs=counts.get("execs", 0),
            exits=counts.get("exits", 0),
            ready_s=sum(each.ready_s for each in used),
            page_faults=sum(each.page_faults for each in used),
            reclaim_s=pressure.memory_s if pressure else None,
            read_bytes=sum(each.read_bytes for each in used),
            written_bytes=sum(each.written_bytes for each in used),
            io_s=pressure.io_s if pressure else None,
        )

    def events(self, timeout_s: float) -> list[Event]:
        deadline = time.monotonic() + timeout_s
        while True:
            if found := self._changes():
                return found
            left = deadline - time.monotonic()
            if left <= 0 or self._closed.wait(min(self._interval_s, left)):
                return []

    def close(self) -> None:
        self._closed.set()

    def _changes(self) -> list[Event]:
        with self._lock:
            now = time.monotonic()
            there: dict[int, _Watched] = {}
            for watched in self._watched.values():
                there |= dict.fromkeys(watched.leaf.pids(), watched)
            ended = [pid for pid, known in self._known.items() if not _same(pid, known, there)]
            found: list[Event] = [self._ended(pid, now) for pid in ended]
            for pid, watched in there.items():
                found += self._seen(pid, watched, now)
            return found

    def _ended(self, pid: int, now: float) -> Event:
        watched = self._known.pop(pid).watched
        watched.counts["exits"] += 1
        return Exited(at_s=now, leaf=watched.number, pid=pid, status=None)

    def _seen(self, pid: int, watched: _Watched, now: float) -> list[Event]:
        process = looking.process(pid)
        if process is None:
            return []
        known, words = self._known.get(pid), looking.words(pid)
        self._known[pid] = _Known(process.started, watched, words)
        found: list[Event] = []
        if known is None:
            watched.counts["forks"] += 1
            found.append(Forked(at_s=now, leaf=watched.number, pid=pid, parent=process.parent))
        # a child that has not executed anything yet looks like its parent
        before = known.words if known else self._words_of(process.parent)
        if words and words != before:
            watched.counts["execs"] += 1
            found.append(Executed(at_s=now, leaf=watched.number, pid=pid, words=words, whole=True))
        return found

    def _words_of(self, pid: int) -> tuple[str, ...]:
        return self._known[pid].words if pid in self._known else looking.words(pid)


def _same(pid: int, known: _Known, there: dict[int, _Watched]) -> bool:
    process = looking.process(pid)
    return process is not None and process.started == known.started and pid in there


def _look(watched: _Watched) -> Threads:
    doing: Counter[str] = Counter()
    for pid in watched.leaf.pids():
        process = looking.process(pid)
        if process is None:
            continue
        waited, moved = looking.waited(pid), looking.moved_bytes(pid) or (0, 0)
        watched.used[pid, process.started] = _Used(waited.ready_s, process.page_faults, *moved)
        doing.update(_DOING.get(state, "asleep") for state in waited.states)
    return Threads(**doing)
