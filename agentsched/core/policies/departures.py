"""When gaps will have lasted longer than their seats are worth, in order of time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from agentsched.core.ledger import Ledger

MOST_STALE = 4096


class Departures:
    """Of all engines. Gaps mostly end before; what is left of them is thrown away once it is much."""

    def __init__(self) -> None:
        self._times: list[tuple[float, str, str]] = []
        self._most = MOST_STALE

    @property
    def next_s(self) -> float | None:
        """When the next one may be."""
        return self._times[0][0] if self._times else None

    def are_due(self, now: float) -> bool:
        """Whether somebody's time has come."""
        return bool(self._times) and self._times[0][0] <= now

    def expect(self, leaves_s: float, engine: str, program: str, ledgers: Mapping[str, Ledger]) -> None:
        """The program's seat there is not worth its gap from ``leaves_s`` on, monotonic seconds."""
        heapq.heappush(self._times, (leaves_s, engine, program))
        if len(self._times) > self._most:
            self._times = [
                (at_s, where, name)
                for at_s, where, name in self._times
                if where in ledgers and ledgers[where].leaves(name, at_s)
            ]
            heapq.heapify(self._times)
            self._most = 2 * len(self._times) + MOST_STALE

    def due(self, now: float, ledgers: Mapping[str, Ledger]) -> Iterator[tuple[str, str]]:
        """Engines and programs whose time has come, noted in their ledgers."""
        while self._times and self._times[0][0] <= now:
            leaves_s, engine, program = heapq.heappop(self._times)
            if engine in ledgers and ledgers[engine].leave(program, leaves_s):
                yield engine, program
