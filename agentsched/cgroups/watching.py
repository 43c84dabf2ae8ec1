"""Looks at a tool call while it runs, and tells what it sees now and then: a ``Progress``.

What it tells is paced: never twice within ``LEAST_S``, a share that rose by ``STEP`` soon, a smaller rise
or a change of use about once a second, and without news of the share every ``QUIET_S``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from agentsched.cgroups.commands import programs
from agentsched.cgroups.contract import Leaf, ToolSpec
from agentsched.cgroups.progress import Told, Tracker

LEAST_S = 0.25
USUAL_S = 1.0
QUIET_S = 5.0
STEP = 0.05


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Of a running tool call: the share of its time that has passed, where its output tells, and what it was
    read from; what it used so far. ``memory_bytes``: at most until now, where the backend knows it."""

    elapsed_s: float
    cpu_s: float
    memory_bytes: int
    done_fraction: float | None = None
    source: str = ""


OnProgress = Callable[[Progress], None]


class Watch:
    """One call's. Thread-safe: output may come from other threads than the ticks."""

    def __init__(self, spec: ToolSpec, known: Mapping[str, int], tell: OnProgress | None) -> None:
        self._tracker = Tracker(programs(spec.argv, spec.command), known)
        self._leaf: Leaf | None = None
        self._tell = tell
        self._lock = threading.Lock()
        self._began_s = self._told_s = time.monotonic()
        self._told_fraction = 0.0
        self._resting = False
        self.due_s = math.inf
        """When ``tick`` wants to be called next, monotonic seconds."""

    @property
    def heard(self) -> bool:
        """Whether anybody wants to know while the call runs."""
        return self._tell is not None

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the command should have, unless the caller set them."""
        return self._tracker.environment

    def begin(self, leaf: Leaf) -> None:
        """The command runs."""
        self._leaf = leaf
        self._began_s = self._told_s = time.monotonic()
        self.due_s = self._began_s + LEAST_S

    def output(self, chunk: bytes) -> None:
        """Some output of the tool. A flood costs hardly more than these calls until the next tick."""
        if self._resting:
            return
        with self._lock:
            self._tracker.feed(chunk, time.monotonic() - self._began_s)
            self._resting = self._tracker.full

    def tick(self) -> None:
        """Look, and tell if there is something to tell."""
        now = time.monotonic()
        self.due_s = now + LEAST_S
        with self._lock:
            self._resting = False
            told = self._tracker.told(now - self._began_s)
        if self._worth_telling(told, now - self._told_s):
            self._say(told, now)

    def _worth_telling(self, told: Told | None, since_s: float) -> bool:
        risen = (told.done_fraction if told else 0.0) - self._told_fraction
        first = self._told_s == self._began_s
        return risen >= STEP or since_s >= (USUAL_S if risen > 0 or first else QUIET_S)

    def _say(self, told: Told | None, now: float) -> None:
        if self._leaf is None or self._tell is None:
            return
        used = self._leaf.usage()
        self._told_s = now
        fraction, source = told or (None, "")
        self._told_fraction = fraction or 0.0
        self._tell(
            Progress(
                elapsed_s=now - self._began_s,
                cpu_s=used.cpu_s,
                memory_bytes=used.peak_memory_bytes,
                done_fraction=fraction,
                source=source,
            )
        )

    def last(self) -> Told | None:
        """What the output told by now."""
        with self._lock:
            return self._tracker.told(time.monotonic() - self._began_s)

    def counted(self) -> dict[str, int]:
        """What the same command may be expected to count next time."""
        return self._tracker.counted()
