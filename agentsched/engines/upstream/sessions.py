"""Carries soft pins out: closes sessions on the server when they are due."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

import msgspec

from agentsched.core.decisions import EngineOrder
from agentsched.core.standing import StandingOrders
from agentsched.engines.upstream.dialect import session_of
from agentsched.engines.upstream.pool import Outgoing, Pool, exchanged, header_lines
from agentsched.engines.upstream.soft_pins import SoftPins
from agentsched.engines.upstream.wire import Fault, Header, UpstreamFault

_log = logging.getLogger(__name__)

CLOSE_S = 10.0
_JSON: Header = (b"Content-Type", b"application/json")


class Sessions:
    """The sessions of one server; ``headers`` for requests of our own. Close it with the engine."""

    def __init__(self, orders: StandingOrders, pool: Pool, name: str, headers: list[Header]) -> None:
        self._pins = SoftPins(orders)
        self._pool = pool
        self._name = name
        self._headers = [*headers, _JSON]
        self._due: asyncio.Queue[str] = asyncio.Queue()
        self._alarm: asyncio.TimerHandle | None = None
        self._failed = self._closed = False
        self._task = asyncio.create_task(self._close_all(), name=f"sessions of {name}")

    @property
    def used(self) -> bool:
        """Whether calls are to be in sessions at all."""
        return self._pins.used

    def ordered(self, orders: Iterable[EngineOrder]) -> None:
        """These orders have been applied."""
        self._pins.ordered(orders, time.monotonic())
        self._look()

    def began(self, program: str) -> None:
        self._pins.began(program)

    def ended(self, program: str) -> None:
        self._pins.ended(program, time.monotonic())
        self._look()

    async def close(self) -> None:
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _look(self) -> None:
        """Close what is due, and be back when the next may be."""
        if self._closed:  # calls may end after their server is gone
            return
        now = time.monotonic()
        for program in self._pins.closing(now):
            self._due.put_nowait(program)
        if self._alarm is not None:
            self._alarm.cancel()
        next_s = self._pins.next_s()
        if next_s is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(max(0.001, next_s - now), self._look)

    async def _close_all(self) -> None:
        while True:
            program = await self._due.get()
            try:
                try:
                    await self._close(program)
                except UpstreamFault as fault:
                    if fault.fault is not Fault.STALE:
                        raise
                    await self._close(program)
            except UpstreamFault as fault:
                if fault.fault is not Fault.REFUSED:  # else it is gone, and with it all sessions
                    self._fail(str(fault))

    async def _close(self, program: str) -> None:
        body = msgspec.json.encode({"session_id": session_of(program)})
        outgoing = Outgoing(path="/close_session", lines=header_lines(self._headers), body=body)
        answer = await exchanged(self._pool, outgoing, CLOSE_S)
        if answer.status >= 400:
            self._fail(f"status {answer.status}")

    def _fail(self, why: str) -> None:
        """Said once: what is not unpinned goes by recency among what is pinned."""
        if not self._failed:
            self._failed = True
            _log.warning(
                "engine %s does not close sessions (%s): KV of programs that have ended stays pinned there "
                "until pinned KV is all that is left",
                self._name,
                why,
            )
