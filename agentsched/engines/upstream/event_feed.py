"""Listens to the KV events of one server, and keeps the ledger of what is held there.

A server numbers what it publishes. Where numbers are missing and it repeats what it sent, that is asked for;
else what was known is forgotten, since a removal may have been missed: better to know of less than of what is
gone. So it begins, too: with all that the server can repeat, or with what comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import zmq
import zmq.asyncio

from agentsched.engines.upstream.dialect import program_of
from agentsched.engines.upstream.kv_events import Batch, Unreadable, read_batch, take
from agentsched.engines.upstream.kv_ledger import KvLedger
from agentsched.engines.upstream.probe import EventsAt

_log = logging.getLogger(__name__)

REPEAT_S = 5.0
MOST_WAITING = 100_000
"""Messages that may lie here unread; beyond that they are missing, and dealt with as such."""


class EventFeed:
    """From ``open`` to ``close``. ``news`` is called when the ledger may have changed."""

    def __init__(self, at: EventsAt, name: str, news: Callable[[], None]) -> None:
        self.ledger = KvLedger()
        self._at = at
        self._name = name
        self._news = news
        self._context = zmq.asyncio.Context()
        self._next: dict[int, int] = {}
        self._last_s: dict[int, float] = {}
        """By the server's clock: when the last batch of a rank was made."""
        self._unreadable = False
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Returns when it listens, and what could be repeated is known."""
        socket = self._context.socket(zmq.SUB)
        socket.set_hwm(MOST_WAITING)
        socket.subscribe(self._at.topic)
        for endpoint in self._at.endpoints:
            socket.connect(endpoint)
        for rank in range(len(self._at.replays)):
            await self._repeat(rank, 0, None)
        self._task = asyncio.create_task(self._listen(socket), name=f"KV events of {self._name}")
        self._task.add_done_callback(self._over)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.ledger.cleared()
            _log.error("engine %s: its KV events are listened to no more", self._name, exc_info=error)

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            *_, number, payload = await socket.recv_multipart()
            await self._take(int.from_bytes(number, "big"), payload)
            self._news()

    async def _take(self, number: int, payload: bytes) -> None:
        try:
            batch = read_batch(payload)
        except Unreadable as error:
            if not self._unreadable:
                self._unreadable = True
                _log.warning(
                    "engine %s publishes KV events that are not understood (%s): what it holds is not "
                    "known from them",
                    self._name,
                    error,
                )
            self.ledger.cleared()
            return
        rank = batch.rank
        due = self._next.get(rank)
        if due is not None and number < due:
            if batch.time_s <= self._last_s[rank]:
                return  # it was repeated before it came
            self._forget("it numbers them anew")
        elif number != (due or 0):
            await self._repeat(rank, due or 0, number)
        self._enter(number, batch)

    def _enter(self, number: int, batch: Batch) -> None:
        self._next[batch.rank], self._last_s[batch.rank] = number + 1, batch.time_s
        take(batch, self.ledger, program_of)

    async def _repeat(self, rank: int, since: int, before: int | None) -> None:
        """Ask for what was sent from number ``since`` on, and take it up to ``before``. What cannot be had is
        missed."""
        replays = self._at.replays
        expected = since
        if rank < len(replays):
            try:
                async with asyncio.timeout(REPEAT_S):
                    expected = await self._repeated(replays[rank], since, before)
            except TimeoutError:
                _log.warning(
                    "engine %s does not repeat its KV events at %s within %g s",
                    self._name,
                    replays[rank],
                    REPEAT_S,
                )
        if before is not None and expected not in (0, before):  # 0: nothing was known before either
            self._forget(f"{before - expected} batches are missing")

    async def _repeated(self, endpoint: str, since: int, before: int | None) -> int:
        """Take what is repeated; the number that is due after that."""
        expected = since
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.set_hwm(0)
            socket.connect(endpoint)
            await socket.send_multipart([b"", since.to_bytes(8, "big")])
            while True:
                *_, number, payload = await socket.recv_multipart()
                if not payload:
                    return expected
                at = int.from_bytes(number, "big")
                if before is not None and at >= before:
                    continue
                if at == expected or expected == 0:
                    with contextlib.suppress(Unreadable):  # it is told of when one comes
                        self._enter(at, read_batch(payload))
                    expected = at + 1
        finally:
            socket.close(linger=0)

    def _forget(self, why: str) -> None:
        _log.warning(
            "engine %s: KV events are lost (%s): what it holds is known anew from what comes", self._name, why
        )
        self.ledger.cleared()
