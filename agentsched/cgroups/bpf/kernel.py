"""The source of facts that the kernel tells itself: BPF programs on tracepoints (``programs``).

What is counted stays in the kernel, in maps by leaf, and is read when somebody asks. What happens comes
through one ring buffer. If that is full, events are lost: they are counted, and that is said once.
"""

from __future__ import annotations

import ctypes as ct
import logging
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from agentsched.cgroups.bpf import looking
from agentsched.cgroups.bpf.facts import Event, Executed, Exited, Facts, Forked, OomKilled, Threads
from agentsched.cgroups.bpf.loading import PROGRAMS, load
from agentsched.cgroups.contract import HostRefused, Leaf

_log = logging.getLogger(__name__)

_HEAD = struct.Struct("<QQIIIi")  # struct event_t
_EXEC = struct.Struct("<II")
_FORKED, _EXECUTING, _EXECUTED, _EXITED, _OOM_KILLED = range(1, 6)
_MOST_AT_ONCE = 512
"""So many events are told together. The ring's reader goes on for as long as more come: in a storm of short
processes for ever."""

_ENOUGH = -1  # what a callback answers for the reader to stop behind this event
_DOING = ("running", "ready", "asleep", "waiting")
_BY_LEAF = {
    "lifecycle": b"lives",
    "running": b"spent",
    "memory": b"memory",
    "oom": b"oom_kills",
    "block_io": b"blocks",
}
_LOST = {
    "lifecycle": "processes",
    "commands": "commands",
    "running": "waiting for CPUs, and what threads are blocked on",
    "memory": "page faults and time of reclaim",
    "oom": "victims of the OOM killer, but for their number",
    "block_io": "block I/O",
}


class KernelSource:
    """See ``facts.Source``. ``programs``: which to load; facts of others are None.

    Raises ``HostRefused`` with the reason why they cannot be loaded.
    """

    name = "bpf"

    def __init__(self, programs: Sequence[str] = PROGRAMS) -> None:
        self._programs = frozenset(programs)
        self._bpf = load(programs)
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[Leaf, int]] = {}
        """Leaves by identity, and their ids: the folder may be gone when one is forgotten."""
        self._events: deque[Event] = deque()
        self._executing: dict[int, tuple[tuple[str, ...], bool]] = {}
        self._told_lost = False
        self._bpf[b"events"].open_ring_buffer(self._take)

    @property
    def lost(self) -> tuple[str, ...]:
        return tuple(what for name, what in _LOST.items() if name not in self._programs)

    def watch(self, leaf: Leaf) -> None:
        number = leaf.cgroup_id
        if number is None:
            raise HostRefused("BPF knows leaves by their cgroup v2, and this backend has none")
        with self._lock:
            if self._bpf is not None:
                self._watched[id(leaf)] = leaf, number
                self._bpf[b"leaves"][ct.c_ulonglong(number)] = ct.c_ulonglong(number)

    def forget(self, leaf: Leaf) -> None:
        with self._lock:
            _, number = self._watched.pop(id(leaf), (leaf, None))
            if number is None or self._bpf is None:
                return
            for name in (b"leaves", *(_BY_LEAF[p] for p in self._programs if p in _BY_LEAF)):
                self._drop(name, ct.c_ulonglong(number))
            if "running" in self._programs:
                for thread, value in list(self._bpf[b"threads"].items()):
                    if value.leaf == number:
                        self._drop(b"threads", thread)

    def _drop(self, table: bytes, key: Any) -> None:
        try:
            del self._bpf[table][key]
        except KeyError:
            return  # nothing was counted

    def facts(self, leaf: Leaf) -> Facts:
        with self._lock:
            _, number = self._watched.get(id(leaf), (leaf, None))
            if number is None or self._bpf is None:
                raise HostRefused("this leaf is not watched")
            found = self._lives(number) | self._spent(number) | self._memory(number) | self._blocks(number)
            found["threads"] = self._threads(number)
            victims = self._read("oom", number)
        kills = leaf.oom_kills() if victims is None else max(victims.value, leaf.oom_kills())
        found.setdefault("running_s", leaf.usage().cpu_s)
        return Facts(oom_kills=kills, **found)

    def _read(self, program: str, number: int) -> Any:
        """What a program counted for a leaf; zeros if nothing yet; None if it is not loaded."""
        if program not in self._programs:
            return None
        table = self._bpf[_BY_LEAF[program]]
        try:
            return table[ct.c_ulonglong(number)]
        except KeyError:
            return table.Leaf()

    def _lives(self, number: int) -> dict[str, Any]:
        lives = self._read("lifecycle", number)
        return {} if lives is None else {"forks": lives.forks, "execs": lives.execs, "exits": lives.exits}

    def _spent(self, number: int) -> dict[str, Any]:
        spent = self._read("running", number)
        return {} if spent is None else {f"{doing}_s": spent.ns[i] / 1e9 for i, doing in enumerate(_DOING)}

    def _memory(self, number: int) -> dict[str, Any]:
        memory = self._read("memory", number)
        if memory is None:
            return {}
        return {"page_faults": memory.faults, "reclaim_s": memory.reclaim_ns / 1e9}

    def _blocks(self, number: int) -> dict[str, Any]:
        blocks = self._read("block_io", number)
        if blocks is None:
            return {}
        return {
            "read_bytes": blocks.bytes[0],
            "written_bytes": blocks.bytes[1],
            "io_s": (blocks.ns[0] + blocks.ns[1]) / 1e9,
        }

    def _threads(self, number: int) -> Threads:
        if "running" not in self._programs:
            return Threads()
        doing = Counter(
            _DOING[value.doing & 3] for value in self._bpf[b"threads"].values() if value.leaf == number
        )
        return Threads(**doing)

    def events(self, timeout_s: float) -> list[Event]:
        bpf, deadline_s = self._bpf, time.monotonic() + timeout_s
        if bpf is None:
            return []
        left_s = timeout_s
        while not self._events and left_s >= 0:
            # comes back with nothing when an event is still being written
            bpf.ring_buffer_poll(max(0, round(left_s * 1000)))
            left_s = deadline_s - time.monotonic()
        self._say_lost()
        found = list(self._events)
        self._events.clear()
        return found

    def _say_lost(self) -> None:
        if self._told_lost or self._bpf is None:
            return
        if lost := self._bpf[b"lost_events"][0].value:
            self._told_lost = True
            _log.warning("%d events of tool calls were lost: more happened than the ring buffer holds", lost)

    def _take(self, context: Any, data: int, size: int) -> int:
        raw = ct.string_at(data, size)
        time_ns, leaf, kind, pid, parent, status = _HEAD.unpack_from(raw)
        at = {"at_s": time_ns / 1e9, "leaf": leaf, "pid": pid}
        if kind == _EXECUTING:
            self._executing[pid] = _words(raw), status == 0
        elif kind == _FORKED:
            self._events.append(Forked(parent=parent, **at))
        elif kind == _EXECUTED:
            words, whole = self._executing.pop(pid, ((), False))
            if not whole:
                words, whole = looking.words(pid) or words, False
            self._events.append(Executed(words=words, whole=whole, **at))
        elif kind == _EXITED:
            self._executing.pop(pid, None)
            self._events.append(Exited(status=status, **at))
        elif kind == _OOM_KILLED:
            self._events.append(OomKilled(**at))
        return _ENOUGH if len(self._events) >= _MOST_AT_ONCE else 0

    def close(self) -> None:
        with self._lock:
            bpf, self._bpf = self._bpf, None
        if bpf is not None:
            bpf.cleanup()


def _words(raw: bytes) -> tuple[str, ...]:
    size, count = _EXEC.unpack_from(raw, _HEAD.size)
    text = raw[_HEAD.size + _EXEC.size :][:size]
    return tuple(word.decode("utf-8", "surrogateescape") for word in text.split(b"\0")[:count])
