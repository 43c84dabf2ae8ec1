"""How much memory there is for tool calls: the machine's, or less if a control group above has a limit.

All leaves under the same limited folder share one host, and so do all that are under none.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from agentsched.cgroups import tree
from agentsched.core.tool_control import HostSeen

_UNLIMITED = 1 << 60
"""Limits above this are none (v1 says so with a number near 2 to 63)."""


class _Bound(NamedTuple):
    """A limited folder above leaves; ``v1``: by its control files."""

    folder: str
    v1: bool

    def seen(self) -> HostSeen:
        limit_file, usage_file = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if self.v1
            else ("memory.max", "memory.current")
        )
        limit = _number(tree.read_if_there(f"{self.folder}/{limit_file}"))
        used = _number(tree.read_if_there(f"{self.folder}/{usage_file}"))
        stat = tree.read_if_there(f"{self.folder}/memory.stat")
        prefix = "total_" if self.v1 else ""
        # as MemAvailable counts: the inactive part of the cache goes without harm, of the active one half
        cache = tree.keyed(stat, f"{prefix}inactive_file") + tree.keyed(stat, f"{prefix}active_file") // 2
        return HostSeen(total_bytes=limit, free_bytes=max(0, min(limit, limit - used + cache)))


class HostView:
    """One host. ``name``: its limited folder, or "" for the whole machine."""

    def __init__(self, bounds: tuple[_Bound, ...]) -> None:
        self._bounds = bounds
        self.name = bounds[0].folder if bounds else ""

    def seen(self) -> HostSeen:
        """What there is, and what could be had at once: the least of the machine and the limits above."""
        machine = _machine()
        all_seen = [machine, *(bound.seen() for bound in self._bounds)]
        least = min(all_seen, key=lambda seen: seen.total_bytes)
        return HostSeen(
            total_bytes=least.total_bytes,
            free_bytes=min(least.total_bytes, *(seen.free_bytes for seen in all_seen)),
        )


def host_of(home: str, *, v1: bool) -> HostView:
    """The host that leaves under the memory folder ``home`` are on."""
    file = "memory.limit_in_bytes" if v1 else "memory.max"
    bounds, folder = [], home
    while os.path.exists(f"{folder}/{file}"):
        if 0 < _number(tree.read_if_there(f"{folder}/{file}")) < _UNLIMITED:
            bounds.append(_Bound(folder, v1))
        folder = os.path.dirname(folder)
    return HostView(tuple(bounds))


def _number(text: str) -> int:
    text = text.strip()
    return _UNLIMITED if text == "max" else int(text or 0)


def _machine() -> HostSeen:
    amounts = {}
    for line in tree.read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            amounts[name] = int(rest.split()[0]) << 10
    return HostSeen(total_bytes=amounts["MemTotal"], free_bytes=min(amounts.values()))
