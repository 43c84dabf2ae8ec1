"""A host on which simulated tool calls run: a few cores, shared, and a limited memory.

A model of one host without any control over it, so that what control is worth can be measured:

* A call computes first (``cpu_s``) and waits for the rest of its time; waiting takes no core. It has as
  many threads as it needs to end within its time when it is alone (one, unless ``cpu_s`` exceeds it), and
  cores are shared equally among threads. So a call that finds free cores takes its ``gap_s`` exactly.
* A call holds its ``memory_bytes`` from start to end. The youngest call loses: one that starts where too
  little memory is left runs into the limit at its end, where its memory would peak, and is killed (OOM):
  its time is spent for nothing. It starts again after a pause that doubles with each kill. It holds none
  of the memory meanwhile, so those before it are never killed, some call always ends, and no run stands
  still. One that needs more than the whole host is killed once and counts as ended: its agent would see
  the failure and go on.

In virtual time and deterministic. Threads progress alike, so one clock that slows down as threads
exceed cores tells when each call's computing ends: starting or ending a call costs O(log n).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from agentsched.workloads.scripts import Turn

RESTART_S = 1.0
"""The pause after a call's first kill."""


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


@dataclass(slots=True)
class _Call:
    name: str
    gap_s: float
    cpu_s: float
    memory_bytes: int
    began_s: float
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
        been called for all that ended before it. ``name`` is what ``advance`` returns at its end."""
        self._pass(now)
        call = _Call(name, gap_s, cpu_s if gap_s else 0.0, memory_bytes, now)
        call.threads = max(1.0, call.cpu_s / gap_s) if gap_s else 1.0
        self._begin(call)
        if not call.holds:
            self.usage.over_memory += 1

    def advance(self, now: float) -> list[str]:
        """Let time pass; the names of the calls that ended until ``now``, in order."""
        ended: list[str] = []
        while (next_s := self.next_s) is not None and next_s <= now:
            if self._waiting and self._waiting[0][0] == next_s:
                self._pass(next_s)
                call = heapq.heappop(self._waiting)[2]
                if self._leave(call):
                    ended.append(call.name)
                continue
            end_s, _, call = heapq.heappop(self._computing)
            self.now, self._progress_s = next_s, end_s
            self._threads -= call.threads
            self.usage.cpu_s += call.cpu_s
            self._wait(call)
        self._pass(now)
        return ended

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
        call.holds = limit is None or self._held_bytes + call.memory_bytes <= limit
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

    def _leave(self, call: _Call) -> bool:
        """What was waited for is over: the call ends, is killed, or starts again. Whether it has ended."""
        if call.pausing:
            call.pausing = False
            self._begin(call)
            return False
        if call.holds:
            self._held_bytes -= call.memory_bytes
        else:
            self.usage.oom_kills += 1
            call.kills += 1
            if self.memory_bytes is not None and call.memory_bytes <= self.memory_bytes:
                call.pausing = True
                self._tie += 1
                heapq.heappush(
                    self._waiting, (self.now + RESTART_S * 2.0 ** (call.kills - 1), self._tie, call)
                )
                return False
        self.usage.ended += 1
        self.usage.delay_s += max(0.0, self.now - call.began_s - call.gap_s)
        return True

    def _speed(self) -> float:
        """Seconds of a thread's progress in a second."""
        return 1.0 if self.cores is None else min(1.0, self.cores / self._threads)

    def _computed_s(self) -> float:
        return self.now + max(0.0, self._computing[0][0] - self._progress_s) / self._speed()

    def _pass(self, now: float) -> None:
        if self._computing:
            self._progress_s += (now - self.now) * self._speed()
        self.now = now


class Gaps:
    """Ends the gaps of simulated programs: on a host, or, without one, after the time they take alone."""

    def __init__(self, at: Callable[[float, Callable[[], None]], None], host: ToolHost | None) -> None:
        """``at`` has an action done at a time."""
        self._at, self._host = at, host
        self._over: dict[str, Callable[[], None]] = {}
        self._planned_s: float | None = None

    def begin(self, program: str, turn: Turn, now: float, over: Callable[[], None]) -> None:
        """The program is away as ``turn`` says; ``over`` is called at the end. It has no other gap then."""
        if self._host is None:
            self._at(now + turn.gap_s, over)
            return
        self._over[program] = over
        self._host.start(program, gap_s=turn.gap_s, cpu_s=turn.cpu_s, memory_bytes=turn.memory_bytes, now=now)
        self._plan(self._host)

    def _plan(self, host: ToolHost) -> None:
        when_s = host.next_s
        if when_s is not None and when_s != self._planned_s:
            self._planned_s = when_s
            self._at(when_s, lambda: self._due(host, when_s))

    def _due(self, host: ToolHost, when_s: float) -> None:
        if self._planned_s != when_s:
            return
        self._planned_s = None
        for program in host.advance(when_s):
            self._over.pop(program)()
        self._plan(host)
