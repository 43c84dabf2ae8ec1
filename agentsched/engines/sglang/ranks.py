"""One will in all ranks of a server (tensor parallelism): each has a tree of its own, and all evict alike.

Whatever decides anything here follows from three things: the tree, the orders, and the time. The first rank
alone listens to the daemon and looks at a clock. What it takes and reads reaches the others, and itself, in
SGLang's own broadcast of requests at the beginning of a turn, so that every rank knows the same in the same
turn. The time is told once a tick; where nothing is ordered it decides nothing, and nothing is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentsched.core.decisions import EngineOrder
from agentsched.engines.sglang.retained import TICK_S


@dataclass(frozen=True, slots=True)
class Told:
    """What a turn begins with, on all ranks: the first one's monotonic time, seconds, and new orders."""

    now_s: float
    orders: tuple[EngineOrder, ...]


class Ranks:
    """One rank of ``size``. ``poll`` gives the first rank what the daemon has sent; None: this is another."""

    def __init__(
        self,
        size: int,
        poll: Callable[[], Sequence[EngineOrder]] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size = size
        self._poll = poll
        self._clock = clock
        self._untold: tuple[EngineOrder, ...] = ()
        self._told_s = float("-inf")

    def around_receiving(
        self, receive: Callable[..., list[Any]], local: Sequence[Any] | None, *, standing: bool
    ) -> list[Any]:
        """In place of ``receive`` on the first rank of several: what it is to tell goes with the requests
        that are its own (``local``). ``standing``: orders stand, so that time decides something."""
        self._untold += tuple(self._polled())
        now = self._clock()
        if not self._untold and not (standing and now >= self._told_s + TICK_S):
            return receive(local)
        told = Told(now, self._untold)
        requests = receive([*(local or ()), told])
        # SGLang may skip a turn's requests (--scheduler-recv-interval), on all ranks.
        if any(request is told for request in requests):
            self._untold, self._told_s = (), now
        return requests

    def begun(self, requests: list[Any]) -> list[Told]:
        """What this turn begins with; it is taken out of the requests that were received."""
        if self._size == 1:
            return [Told(self._clock(), tuple(self._polled()))]
        told = [request for request in requests if isinstance(request, Told)]
        if told:
            requests[:] = [request for request in requests if not isinstance(request, Told)]
        return told

    def _polled(self) -> Sequence[EngineOrder]:
        return () if self._poll is None else self._poll()
