"""Processes found by a mark in their environment: what is left where there are no cgroups.

Children inherit the mark, also across setsid and double forks; a process that clears its
environment escapes. Only the standard library, since the watchdog uses this too. Without /proc
nothing is ever found.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

VARIABLE = "AGENTSCHED_LEAF"


def everyone() -> Iterator[tuple[int, str]]:
    """All marked processes that this user may look at, with their marks."""
    prefix = f"{VARIABLE}=".encode()
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except FileNotFoundError:
        return
    for pid in pids:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone, or another user's, so not ours
        if prefix not in environment:
            continue
        for entry in environment.split(b"\0"):
            if entry.startswith(prefix):
                yield pid, entry[len(prefix) :].decode(errors="replace")


def find(mark: str) -> list[int]:
    """Live processes whose environment holds the mark."""
    return [pid for pid, marks in everyone() if mark in marks]


def send(mark: str, number: signal.Signals) -> list[int]:
    """Signal all of them; returns whom."""
    found = find(mark)
    for pid in found:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    return found


def kill(mark: str, patience_s: float) -> list[int]:
    """Kill again and again until none is left, or ``patience_s`` is over; returns who is left."""
    deadline = time.monotonic() + patience_s
    while left := send(mark, signal.SIGKILL):
        if time.monotonic() >= deadline:
            return left
        time.sleep(0.002)
    return []
