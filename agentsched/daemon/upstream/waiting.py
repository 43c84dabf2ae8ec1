"""Clients of the fast path while they wait for their calls.

Most answers come whole and before long. So nobody is given a task as long as there is nothing to do for it
but to wait: such an answer is written within the step of the loop in which it comes. Whose answer is a
stream, or long, or late, gets a task from there on (``delivery.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from agentsched.daemon.upstream.client import Client
from agentsched.daemon.upstream.delivery import PassDelivery
from agentsched.daemon.upstream.passage import PassedCall, Sink
from agentsched.engines.upstream.wire import Header

Over = Callable[[PassedCall, Sink, Exception | None], None]
"""Called when somebody leaves: with his call, his end of it, and what he is told in place of an answer."""


class PlainClient(Client, Protocol):
    """A client that can also be answered without waiting."""

    def write_whole(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """As ``whole``, but it may lie here until the client reads it. Nothing, if the client is gone."""
        ...

    def answered(self, error: Exception | None) -> None:
        """It has its answer, or is told of this error if nothing was sent. Once a request."""
        ...


class WaitingRooms:
    """All who wait."""

    def __init__(self, delivery: PassDelivery, over: Over) -> None:
        self.delivery, self.over = delivery, over
        self.loop = asyncio.get_running_loop()
        # Who asks for a stream, and who does not: all in one room are patient for equally long.
        self._streams, self._others = _Room(self), _Room(self)

    def wait(self, client: PlainClient, call: PassedCall, sink: Sink, names: Sequence[Header]) -> Waiting:
        """The client waits from now on."""
        stream = call.asked.stream
        room = self._streams if stream else self._others
        waiting = Waiting(self, room, client, call, sink, names)
        if stream and call.held:
            waiting.go_on()
        else:
            room.enter(waiting)
        return waiting


class _Room:
    """Who has waited for longest is first, so one timer is enough."""

    def __init__(self, rooms: WaitingRooms) -> None:
        self._patience_s = rooms.delivery.patience_s
        self._loop = rooms.loop
        self._since_s: dict[Waiting, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, waiting: Waiting) -> None:
        self._since_s[waiting] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s(waiting.call), self._look)

    def leave(self, waiting: Waiting) -> None:
        self._since_s.pop(waiting, None)

    def _look(self) -> None:
        """Whoever has waited for too long hears something."""
        self._timer = None
        now_s = self._loop.time()
        while self._since_s:
            waiting, since_s = next(iter(self._since_s.items()))
            due_s = since_s + self._patience_s(waiting.call)
            if due_s > now_s:
                self._timer = self._loop.call_at(due_s, self._look)
                return
            waiting.go_on()


class Waiting:
    """One client. ``cancel`` once it has gone away."""

    __slots__ = ("_names", "_over", "_room", "_rooms", "_sink", "_task", "call", "client")

    def __init__(
        self,
        rooms: WaitingRooms,
        room: _Room,
        client: PlainClient,
        call: PassedCall,
        sink: Sink,
        names: Sequence[Header],
    ) -> None:
        self.client, self.call = client, call
        self._rooms, self._room = rooms, room
        self._sink, self._names = sink, names
        self._task: asyncio.Task[None] | None = None
        self._over = False
        sink.listener = self._come

    def go_on(self) -> None:
        """By a task from now on, whether the answer has begun or is late."""
        self._room.leave(self)
        self._sink.listener = None
        self._task = self._rooms.loop.create_task(self._deliver())

    def cancel(self) -> None:
        """The client is gone."""
        if self._task is not None:
            self._task.cancel()
        self._leave(ConnectionResetError("the client went away"))  # the task may not have begun

    def _come(self) -> None:
        """All of the answer is here, or what has to be followed."""
        call, sink, head = self.call, self._sink, self._sink.head
        if sink.error is not None:
            self._leave(sink.error)
        elif head is None or not sink.ended or head.stream or self._rooms.delivery.must_be_kept(call):
            self.go_on()
        else:
            self.client.write_whole(head.status, [*head.headers, *self._names], sink.take())
            self._leave()

    async def _deliver(self) -> None:
        try:
            await self._rooms.delivery.deliver(self.client, self.call, self._sink, self._names, 0.0)
        except Exception as error:
            self._leave(error)
        else:
            self._leave()

    def _leave(self, error: Exception | None = None) -> None:
        if self._over:
            return
        self._over = True
        self._room.leave(self)
        self._rooms.over(self.call, self._sink, error)
        self.client.answered(error)
