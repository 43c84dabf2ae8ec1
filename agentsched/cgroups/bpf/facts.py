"""What can be known of a leaf beside limits and usage: what its processes do, wait for, and run.

Two sources give the same types: BPF programs (``kernel``), told by the kernel as it happens, and looking into
cgroup files and /proc now and then (``polled``), which misses what is short. ``sensing.open_source`` takes
the better one that there is.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from agentsched.cgroups.contract import Leaf


class Threads(msgspec.Struct, frozen=True, kw_only=True):
    """What the threads of a leaf do right now: run, wait for a CPU, sleep, or wait uninterruptibly (for a
    disk, as a rule)."""

    running: int = 0
    ready: int = 0
    asleep: int = 0
    waiting: int = 0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one leaf since it is watched; None: not known by this source. Seconds are summed over threads.

    ``ready_s``: ready to run, but others had the CPUs (run-queue delay). ``asleep_s``, ``waiting_s``:
    blocked, the second uninterruptibly. ``reclaim_s``: its threads had to free memory themselves. ``io_s``:
    its block requests were in devices; bytes are those that went to or came from devices.
    """

    running_s: float
    oom_kills: int
    threads: Threads
    forks: int | None = None
    execs: int | None = None
    exits: int | None = None
    ready_s: float | None = None
    asleep_s: float | None = None
    waiting_s: float | None = None
    page_faults: int | None = None
    reclaim_s: float | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    io_s: float | None = None


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """Base of events. ``leaf`` is the cgroup id that the process was in then, ``at_s`` monotonic seconds."""

    at_s: float
    leaf: int
    pid: int


class Forked(Happened, frozen=True, kw_only=True):
    """``pid`` was made by ``parent``; threads are no processes."""

    parent: int


class Executed(Happened, frozen=True, kw_only=True):
    """It became another program. ``words`` are its arguments, the program's name first; ``whole``: all of
    them, in full."""

    words: tuple[str, ...]
    whole: bool


class Exited(Happened, frozen=True, kw_only=True):
    """It ended: 0 to 255, or 128 + the number of the signal that ended it; None: not known."""

    status: int | None


class OomKilled(Happened, frozen=True, kw_only=True):
    """The kernel chose it as the victim when memory ran out."""


Event = Forked | Executed | Exited | OomKilled


class Source(Protocol):
    """Watches leaves. Thread-safe, but that only one thread at a time may be in ``events``."""

    @property
    def name(self) -> str:
        """``bpf`` or ``polling``."""
        ...

    @property
    def lost(self) -> tuple[str, ...]:
        """What it cannot tell, in words."""
        ...

    def watch(self, leaf: Leaf) -> None:
        """Begin with a leaf. Raises ``HostRefused`` if it has no cgroup."""
        ...

    def forget(self, leaf: Leaf) -> None:
        """Its facts are not needed any more. Idempotent; the leaf may be gone."""
        ...

    def facts(self, leaf: Leaf) -> Facts:
        """As of now, also after its processes ended, until it is forgotten or removed."""
        ...

    def events(self, timeout_s: float) -> list[Event]:
        """What happened in watched leaves since the last call, in order; waits for something at most so
        long."""
        ...

    def close(self) -> None:
        """Let everything go. Idempotent."""
        ...
