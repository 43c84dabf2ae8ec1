"""Looks at single processes in /proc. What is gone, or not to be seen, is None."""

from __future__ import annotations

import os
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_MOST_TEXT = 1 << 17


class Process(NamedTuple):
    """``state`` as ps writes it; ``started`` in clock ticks since boot: with the number it identifies."""

    parent: int
    state: str
    started: int
    page_faults: int
    cpu_s: float


class Waited(NamedTuple):
    """Of all threads that there are now."""

    ready_s: float
    states: tuple[str, ...]


def process(pid: int) -> Process | None:
    """What /proc/PID/stat says."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    # the name in parentheses may hold anything, so count from behind it
    field = text.rpartition(b")")[2].split()
    state = field[0].decode()
    if state in "ZX":
        return None
    return Process(
        parent=int(field[1]),
        state=state,
        started=int(field[19]),
        page_faults=int(field[7]) + int(field[9]),
        cpu_s=(int(field[11]) + int(field[12])) / _TICKS,
    )


def words(pid: int) -> tuple[str, ...]:
    """Its arguments; none if it is gone."""
    text = _read(f"/proc/{pid}/cmdline")
    return tuple(word.decode("utf-8", "surrogateescape") for word in text.split(b"\0")[:-1])


def waited(pid: int) -> Waited:
    """Run-queue delay and state of each thread (schedstat, stat)."""
    ready_ns, states = 0, []
    for task in _listed(f"/proc/{pid}/task"):
        schedstat = _read(f"/proc/{pid}/task/{task}/schedstat").split()
        if len(schedstat) > 1:
            ready_ns += int(schedstat[1])
        if stat := _read(f"/proc/{pid}/task/{task}/stat"):
            states.append(stat.rpartition(b")")[2].split()[0].decode())
    return Waited(ready_ns / 1e9, tuple(states))


def moved_bytes(pid: int) -> tuple[int, int] | None:
    """Bytes that it caused to be read from and written to devices (/proc/PID/io)."""
    lines = dict(line.split(b": ") for line in _read(f"/proc/{pid}/io").splitlines() if b": " in line)
    if b"read_bytes" not in lines:
        return None
    return int(lines[b"read_bytes"]), int(lines[b"write_bytes"])


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, ProcessLookupError):
        return []


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _MOST_TEXT)
    except OSError:
        return b""
    finally:
        os.close(fd)
