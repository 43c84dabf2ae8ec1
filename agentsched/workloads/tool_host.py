"""A host on which simulated tool calls run: a few cores, shared, and a limited memory.

A model of one host without any control over it, so that what control is worth can be measured:

* A call computes first (``cpu_s``) and waits for the rest of its time; waiting takes no core. It has as
  many threads as it needs to end within its time when it is alone (one, unless ``cpu_s`` exceeds it), and
  cores are shared equally among threads. So a call that finds free cores takes its ``gap_s`` exactly.
* A call holds its ``memory_bytes`` from start to end. The youngest call loses: one that starts where too
  little memory is left runs into the limit at its end, where its memory would peak, and is killed (OOM):
  its time is spent for nothing. It starts again after a pause that doubles with each kill, up to 5
  minutes. It holds none of the memory meanwhile, so those before it are never killed, some call always
  ends, and no run stands still. One that needs more than the whole host is killed once and counts as
  ended: its agent would see the failure and go on.

In virtual time and deterministic. Threads progress alike, so one clock that slows down as threads
exceed cores tells when each call's computing ends: starting or ending a call costs O(log n).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

RESTART_S = 1.0
"""The pause after a call's first kill."""

SHORTEST_COMPUTING_S = 1e-3
"""Calls that take less compute nothing to speak of; as threads, their CPU time would be beyond all number."""

LONGEST_RESTART_S = 300.0
"""Pauses do not double beyond this, as is usual for what restarts containers."""


@dataclass(slots=True)
class HostUsage:
    """What the host did so far. ``over_memory`` counts calls that found too little memory at their first
    start, ``oom_kills`` all kills; ``delay_s`` is what calls took beyond their own time, kills and pauses
    included."""

    ended: int = 0
    cpu_s: float = 0.0
    delay_s: float = 0.0
    peak_memory_bytes: int = 0
    over_memory: int = 0
    oom_kills: int = 0

    @classmethod
    def total(cls, usages: Iterable[HostUsage]) -> HostUsage:
        """Of several hosts; the peak is the largest of one."""
        total = cls()
        for usage in usages:
            total.ended += usage.ended
            total.cpu_s += usage.cpu_s
            total.delay_s += usage.delay_s
            total.peak_memory_bytes = max(total.peak_memory_bytes, usage.peak_memory_bytes)
            total.over_memory += usage.over_memory
            total.oom_kills += usage.oom_kills
        return total


class Happened(Enum):
    """What became of a call: it ended by itself; it was killed and starts again after a pause, or, as it
    can never fit, does not; it starts again."""

    ENDED = auto()
    KILLED = auto()
    FAILED = auto()
    RESTARTED = auto()


@dataclass(frozen=True, slots=True)
class ToolStep:
    """One thing that happened to the call ``name``; times and memory are since its last start."""

    name: str
    what: Happened
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int


@dataclass(slots=True)
class _Call:
    name: str
    gap_s: float
    cpu_s: float
    memory_bytes: int
    began_s: float
    started_s: float
    free_bytes: int = 0
    threads: float = 1.0
    holds: bool = True
    pausing: bool = False
    kills: int = 0

    @property
    def work_s(self) -> float:
        """Its computing, if its threads have a core each."""
        return self.cpu_s / self.threads


class ToolHost:
    """One host. ``next_s`` is when its next call ends or stops computing (None: nothing runs); call
    ``advance(next_s)`` then. ``cores`` or ``memory_bytes`` None: without limit."""

    def __init__(self, *, cores: float | None = None, memory_bytes: int | None = None) -> None:
        if cores is not None and not 0 < cores < float("inf"):
            raise ValueError(f"ToolHost.cores must be finite and > 0, got {cores}")
        if memory_bytes is not None and memory_bytes < 1:
            raise ValueError(f"ToolHost.memory_bytes must be >= 1, got {memory_bytes}")
        self.cores, self.memory_bytes = cores, memory_bytes
        self.usage = HostUsage()
        self.now = 0.0
        self._held_bytes = 0
        self._threads = 0.0
        self._progress_s = 0.0
        self._tie = 0
        self._computing: list[tuple[float, int, _Call]] = []
        self._waiting: list[tuple[float, int, _Call]] = []

    @property
    def running(self) -> int:
        """Calls that run now."""
        return len(self._computing) + len(self._waiting)

    @property
    def next_s(self) -> float | None:
        ends = [self._computed_s()] if self._computing else []
        ends += [self._waiting[0][0]] if self._waiting else []
        return min(ends, default=None)

    def start(self, name: str, *, gap_s: float, cpu_s: float, memory_bytes: int, now: float) -> None:
        """Start a call that takes ``gap_s`` when it is alone. ``now`` never goes back, and ``advance`` has
        been called for all that ended before it. ``name`` is what ``advance`` calls it."""
        self._pass(now)
        call = _Call(name, gap_s, cpu_s if gap_s >= SHORTEST_COMPUTING_S else 0.0, memory_bytes, now, now)
        call.threads = max(1.0, call.cpu_s / gap_s) if gap_s else 1.0
        self._begin(call)
        if not call.holds:
            self.usage.over_memory += 1

    def advance(self, now: float) -> list[ToolStep]:
        """Let time pass; what happened to calls until ``now``, in order."""
        steps: list[ToolStep] = []
        while (next_s := self.next_s) is not None and next_s <= now:
            if self._waiting and self._waiting[0][0] == next_s:
                self._pass(next_s)
                call = heapq.heappop(self._waiting)[2]
                steps.append(self._leave(call))
                continue
            end_s, _, call = heapq.heappop(self._computing)
            self.now, self._progress_s = next_s, end_s
            self._threads -= call.threads
            self.usage.cpu_s += call.cpu_s
            self._wait(call)
        self._pass(now)
        return steps

    def check_invariants(self) -> None:
        """Threads and memory are those of the calls that run. Raises AssertionError; changes nothing."""
        calls = [call for _, _, call in (*self._computing, *self._waiting)]
        threads = sum(call.threads for _, _, call in self._computing)
        assert abs(self._threads - threads) < 1e-6 * (1 + threads), "threads are not what is counted"
        assert self._held_bytes == sum(
            call.memory_bytes for call in calls if call.holds and not call.pausing
        ), "memory is lost"
        assert self.memory_bytes is None or self._held_bytes <= self.memory_bytes, "memory is overcommitted"

    def _begin(self, call: _Call) -> None:
        limit = self.memory_bytes
        call.started_s = self.now
        call.free_bytes = call.memory_bytes if limit is None else limit - self._held_bytes
        call.holds = call.memory_bytes <= call.free_bytes
        if call.holds:
            self._held_bytes += call.memory_bytes
            self.usage.peak_memory_bytes = max(self.usage.peak_memory_bytes, self._held_bytes)
        if not call.work_s:
            self._wait(call)
            return
        self._tie += 1
        self._threads += call.threads
        heapq.heappush(self._computing, (self._progress_s + call.work_s, self._tie, call))

    def _wait(self, call: _Call) -> None:
        self._tie += 1
        end_s = self.now + max(0.0, call.gap_s - call.work_s)
        heapq.heappush(self._waiting, (end_s, self._tie, call))
        if not self._computing:
            # Small numbers again: the clock of progress would lose digits over days.
            self._threads = self._progress_s = 0.0

    def _leave(self, call: _Call) -> ToolStep:
        """What was waited for is over: the call ends, is killed, or starts again."""
        if call.pausing:
            call.pausing = False
            self._begin(call)
            return ToolStep(call.name, Happened.RESTARTED, 0.0, 0.0, 0)
        what = Happened.ENDED
        if call.holds:
            self._held_bytes -= call.memory_bytes
        else:
            what = Happened.FAILED
            self.usage.oom_kills += 1
            call.kills += 1
            if self.memory_bytes is not None and call.memory_bytes <= self.memory_bytes:
                call.pausing = True
                self._tie += 1
                pause_s = min(LONGEST_RESTART_S, RESTART_S * 2.0 ** min(call.kills - 1, 32))
                heapq.heappush(self._waiting, (self.now + pause_s, self._tie, call))
                return self._step(call, Happened.KILLED)
        self.usage.ended += 1
        self.usage.delay_s += max(0.0, self.now - call.began_s - call.gap_s)
        return self._step(call, what)

    def _step(self, call: _Call, what: Happened) -> ToolStep:
        """A killed call has used what was free when it started, and would have used more."""
        peak_bytes = min(call.memory_bytes, call.free_bytes)
        return ToolStep(call.name, what, self.now - call.started_s, call.cpu_s, peak_bytes)

    def _speed(self) -> float:
        """Seconds of a thread's progress in a second."""
        return 1.0 if self.cores is None else min(1.0, self.cores / self._threads)

    def _computed_s(self) -> float:
        return self.now + max(0.0, self._computing[0][0] - self._progress_s) / self._speed()

    def _pass(self, now: float) -> None:
        if self._computing:
            self._progress_s += (now - self.now) * self._speed()
        self.now = now
