"""Who waits for a seat, by turn; those of each host of tools stand in a line of their own."""

from __future__ import annotations

import heapq
from collections.abc import Collection

from agentsched.core.state import Program, State

Turn = tuple[float, int]
"""A program's place (``Turns.of``); the second number is its order of arrival."""


class Line:
    """Entries of programs that have gone, or sit by now, are dropped when they come first."""

    def __init__(self) -> None:
        self._lines: dict[str, list[tuple[Turn, str]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, host: str, turn: Turn, name: str) -> None:
        heapq.heappush(self._lines.setdefault(host, []), (turn, name))
        self._count += 1

    def pop(self, host: str) -> None:
        """The first of that host's line leaves it."""
        heapq.heappop(self._lines[host])
        self._count -= 1
        if not self._lines[host]:
            del self._lines[host]

    def clear(self) -> None:
        self._lines.clear()
        self._count = 0

    def waits(self, full: Collection[str]) -> bool:
        """Whether anybody stands in line but for hosts that are full."""
        return any(host not in full for host in self._lines)

    def first(self, state: State, full: Collection[str]) -> tuple[str, Program] | None:
        """The first of all lines but those of full hosts, and whose line it is."""
        while True:
            heads = [(line[0], host) for host, line in self._lines.items() if host not in full]
            if not heads:
                return None
            ((_, order), name), host = min(heads)
            program = state.queue.get(name)
            if program is not None and program.order == order:
                return host, program
            self.pop(host)
