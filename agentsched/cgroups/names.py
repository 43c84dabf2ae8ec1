"""Names of folders in the cgroup trees, and whose they are.

A leaf is ``<the caller's own path>/agentsched/<instance>/<program>/<tool call>`` in each hierarchy.
An instance is ``<pid>-<start time>-<pid namespace>-<number>``, the first three of its runtime's
process: pids are used again, start times are not, and pids of another namespace (a container) cannot
be judged from here.
"""

from __future__ import annotations

import itertools
import os
import re

PARENT = "agentsched"
SUPERVISOR = "agentsched-supervisor"
_INSTANCE = re.compile(r"^(\d+)-(\d+)-(\d+)-\d+$")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def folder_name(name: str) -> str:
    """``name`` as one folder: never a path, never the name of a control file (those have a dot).

    Unsafe characters become ``=XX``; a long name keeps its head and gets a digest.
    """
    safe = "".join(
        char
        if not _UNSAFE.match(char)
        else "".join(f"={byte:02X}" for byte in char.encode("utf-8", "replace"))
        for char in name
    )
    if len(safe) <= 120:
        return safe or "="
    import hashlib

    return f"{safe[:80]}={hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:16]}"


def _start_time(pid: int) -> str | None:
    """Clock ticks since boot at which the process started; None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # the name in parentheses may hold anything, so count from behind it
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


_numbers = itertools.count()


def new_instance() -> str:
    """A name that no other instance has. Without /proc (not Linux) it says nothing but the pid."""
    pid, number = os.getpid(), next(_numbers)
    if not os.path.exists("/proc/self/stat"):
        return f"{pid}-0-0-{number}"
    return f"{pid}-{_start_time(pid)}-{_pid_namespace()}-{number}"


def is_instance(name: str) -> bool:
    """Whether a folder name is one of ours."""
    return _INSTANCE.match(name) is not None


def is_alive(instance: str) -> bool | None:
    """Whether the runtime of ``instance`` lives; None if it belongs to another pid namespace."""
    match = _INSTANCE.match(instance)
    if match is None:
        raise ValueError(f"not the name of an instance: {instance!r}")
    pid, start, namespace = match.groups()
    if int(namespace) != _pid_namespace():
        return None
    return _start_time(int(pid)) == start
