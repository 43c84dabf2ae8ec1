"""Processes found by a mark in their environment: what is left where there are no cgroups.

Children inherit the mark, also across setsid and double forks; a process that clears its
environment escapes. Only the standard library, since the watchdog uses this too. Without /proc
nothing is ever found.
"""

from __future__ import annotations

import os
import signal
import time

VARIABLE = "AGENTSCHED_LEAF"


def find(mark: str) -> list[int]:
    """Live processes whose environment holds the mark."""
    wanted = mark.encode()
    found = []
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except FileNotFoundError:
        return []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone, or another user's, so not ours
        variables = environment.split(b"\0")
        if any(wanted in entry for entry in variables if entry.startswith(VARIABLE.encode() + b"=")):
            found.append(pid)
    return found


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
