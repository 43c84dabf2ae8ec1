"""Pins that are on or off, carried out from standing orders that say what KV is worth over time.

A server with sessions keeps the KV of a session before all other KV, and drops the most stale of them when
they are more than fit. So a program has a session from a call of it on, and the session is closed once
no call of it runs and its KV is worth no more than what yields to new calls (``EngineTerms.device_price``):
when its lease ends, its value falls that low, or it is released. Its next call opens it again.

Pure: ``now`` (monotonic seconds) comes with every question.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from agentsched.core.decisions import EngineOrder, EngineTerms, Release, Retain
from agentsched.core.standing import StandingOrders

FEW_DUE = 64
SETTLE_S = 0.25
"""So long after a call has ended the orders that follow from that are there."""


@dataclass(slots=True)
class _Session:
    live: int = 0
    due_s: float = field(default=0.0)
    """When it is looked at next."""


class SoftPins:
    """The sessions of one server. ``orders`` are those that stand there; who applies one shows it here."""

    def __init__(self, orders: StandingOrders) -> None:
        self._orders = orders
        self._sessions: dict[str, _Session] = {}
        self._due: list[tuple[float, str]] = []
        self.used = False
        """Whether KV is ordered to be kept here at all: since the terms were set last, some was. Without that
        (a policy that leaves eviction to the engine, a daemon that only watches) nothing is pinned."""

    def __len__(self) -> int:
        return len(self._sessions)

    def ordered(self, orders: Iterable[EngineOrder], now: float) -> None:
        """These have been applied."""
        for order in orders:
            if isinstance(order, EngineTerms):
                self.used = False
                continue
            self.used = self.used or isinstance(order, Retain)
            session = self._sessions.get(order.program)
            if session is None and isinstance(order, Release):
                # An earlier daemon may have opened one; closing what is none changes nothing there.
                session = self._sessions[order.program] = _Session()
            if session is not None and not session.live:
                self._again(order.program, session, now)

    def began(self, program: str) -> None:
        """A call of it is sent, in its session."""
        self._sessions.setdefault(program, _Session()).live += 1

    def ended(self, program: str, now: float) -> None:
        """That call ended, one way or another."""
        session = self._sessions[program]
        session.live -= 1
        if not session.live:
            self._again(program, session, now + SETTLE_S)

    def closing(self, now: float) -> list[str]:
        """Whose sessions are to be closed now. They count as closed from here on."""
        closed: list[str] = []
        while self._due and self._due[0][0] <= now:
            due_s, program = heapq.heappop(self._due)
            session = self._sessions.get(program)
            if session is None or session.live or session.due_s != due_s:
                continue
            until_s = self._orders.worth_until(program, self._orders.device_price, now)
            if until_s > now:
                self._again(program, session, until_s)
            else:
                del self._sessions[program]
                closed.append(program)
        return closed

    def next_s(self) -> float | None:
        """When to ask again, monotonic seconds."""
        return self._due[0][0] if self._due else None

    def _again(self, program: str, session: _Session, due_s: float) -> None:
        session.due_s = due_s
        heapq.heappush(self._due, (due_s, program))
        if len(self._due) > FEW_DUE + 2 * len(self._sessions):  # most are of orders that were replaced
            self._due = [(s.due_s, name) for name, s in self._sessions.items() if not s.live]
            heapq.heapify(self._due)
