"""The way of one answer from an engine to the clients that wait for it, as bytes.

A ``Sink`` is one client's end: it takes bytes without waiting, and holds the engine back while too many of
them lie there (``HIGH_BYTES``). A ``Passage`` is one sending of a call: what the engine answers goes to the
sinks first, and is looked at after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentsched.daemon.errors import ApiError
from agentsched.daemon.livecall import LiveCall
from agentsched.daemon.upstream.bodies import AnswerHead, PassedHeaders
from agentsched.daemon.upstream.reading import Asked
from agentsched.daemon.upstream.watching import Watch
from agentsched.engines.upstream.dialect import Added
from agentsched.engines.upstream.engine import UpstreamEngine
from agentsched.engines.upstream.wire import Connection, Header, UpstreamFault

HIGH_BYTES = 256 * 1024
LOW_BYTES = 64 * 1024


class Sink:
    """Where a client's bytes wait for it. ``head`` is None until the engine has answered; ``ended``: there
    are no more; ``error``: nor will there be.

    Who has no task that waits is the ``listener``: it is told once the answer is there as a whole, or will
    not be for the time being: a stream has begun, much has come, it has failed.
    """

    __slots__ = (
        "_bytes",
        "_chunks",
        "_holds_back",
        "_pause",
        "_waiter",
        "clean",
        "ended",
        "error",
        "head",
        "listener",
    )

    def __init__(self) -> None:
        self.head: AnswerHead | None = None
        self.listener: Callable[[], None] | None = None
        self.ended = False
        self.error: ApiError | None = None
        self.clean = True
        """Whether an error came between two events of the stream, or before any."""
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._holds_back = False
        self._pause: Callable[[Sink, bool], None] | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.error is not None

    def begin(self, head: AnswerHead, pause: Callable[[Sink, bool], None]) -> None:
        """The engine answers. ``pause`` holds it back, or lets it go on."""
        self.head, self._pause = head, pause
        if head.stream or self.listener is None:
            self._wake()

    def put(self, data: bytes) -> None:
        self._chunks.append(data)
        self._bytes += len(data)
        if self._bytes > HIGH_BYTES and not self._holds_back and self._pause is not None:
            self._holds_back = True
            self._pause(self, True)
        if self._bytes > LOW_BYTES or self.listener is None:
            self._wake()

    def end(self, error: ApiError | None = None, *, clean: bool = True) -> None:
        if not self.over:
            self.ended, self.error, self.clean = error is None, error, clean
            self._wake()

    async def begun(self, timeout_s: float | None) -> bool:
        """Wait until the engine has answered, or never will; False if the time ran out."""
        if self.head is not None or self.over:
            return True
        alarm = None
        if timeout_s is not None:
            alarm = asyncio.get_running_loop().call_later(timeout_s, self._wake)
        try:
            await self._changed()
        finally:
            if alarm is not None:
                alarm.cancel()
        return self.head is not None or self.over

    async def more(self) -> None:
        """Wait until there are bytes, or there will be none."""
        while not self._chunks and not self.over:
            await self._changed()

    async def gathered(self) -> bool:
        """Wait until the whole answer is there; False if it is too large to wait for."""
        while not self.over and self._bytes <= LOW_BYTES:
            await self._changed()
        return self.over

    def take(self) -> bytes:
        """All bytes that are there."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._bytes = 0
        self.let_go()
        return data

    def let_go(self) -> None:
        """Hold the engine back no longer."""
        if self._holds_back and self._pause is not None:
            self._holds_back = False
            self._pause(self, False)

    async def _changed(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self.listener is not None:
            self.listener()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(eq=False, kw_only=True)
class PassedCall(LiveCall):
    """A call whose answer is passed on as it is. ``path``, ``headers`` and ``body`` are what is sent, until
    there is an answer; ``asked_tokens`` is the estimate of its prompt; ``kind`` is what first calls alike
    have in common."""

    asked: Asked
    asked_tokens: int
    kind: str
    body: bytes
    body_bytes: int
    path: str
    headers: PassedHeaders
    sinks: list[Sink] = field(default_factory=list, init=False)
    passage: Passage | None = field(default=None, init=False)
    """While it is under way."""
    first_s: float | None = field(default=None, init=False)
    """When the first token of its stream came, in the loop's time."""
    answered: bool = field(default=False, init=False)
    complete: bool = field(default=False, init=False)
    """The whole answer has come, or it never will: its books are all that is left to do."""

    @property
    def prompt_tokens(self) -> int:
        return self.asked_tokens

    @property
    def can_be_joined(self) -> bool:
        return not self.answered

    def attach(self) -> Sink:
        """A client that waits for this call's answer. Before any of it has come."""
        sink = Sink()
        self.sinks.append(sink)
        return sink

    def detach(self, sink: Sink) -> None:
        sink.listener = None
        self.sinks.remove(sink)
        sink.let_go()

    def notify(self) -> None:
        super().notify()
        if self.error is not None:  # those whose answer is over keep it
            watch = None if self.passage is None else self.passage.watch
            clean = watch is None or watch.between_events
            for sink in tuple(self.sinks):
                sink.end(self.error, clean=clean)


class Passage:
    """An ``Exchange``: one sending of a call to a server, with what was ``added`` to it; by which connection,
    and since when (in the loop's time), is said once that is known.

    ``first_token`` is called if a stream has one, and ``over`` with the answer's end, or its fault: both
    within the next step of the loop, for bytes leave first."""

    __slots__ = (
        "_call",
        "_first_token",
        "_held_by",
        "_loop",
        "_over",
        "added",
        "connection",
        "server",
        "since_s",
        "status",
        "watch",
    )

    def __init__(
        self,
        call: PassedCall,
        server: UpstreamEngine,
        added: Added,
        first_token: Callable[[PassedCall], None],
        over: Callable[[PassedCall, UpstreamFault | None], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.status = 0
        self.watch: Watch | None = None
        """Of its answer, once that begins."""
        self.server, self.added = server, added
        self.connection: Connection | None = None
        self.since_s = 0.0
        self._loop = loop
        self._call = call
        self._first_token, self._over = first_token, over
        self._held_by: list[Sink] = []

    def answered(self, status: int, headers: Sequence[Header]) -> None:
        call = self._call
        self.status, call.answered = status, True
        call.body = b""  # it is not sent again; of many streams at once the requests would fill the memory
        head = AnswerHead.of(status, headers)
        self.watch = Watch(call.asked.path, events=head.stream, hide_usage=call.asked.edits.usage)
        for sink in call.sinks:
            sink.begin(head, self._pause)

    def data(self, data: bytes) -> None:
        watch = self.watch
        assert watch is not None, "an answer begins with its head"
        seen = watch.seen
        began = seen.began
        data = watch.feed(data)
        if data:
            for sink in self._call.sinks:
                sink.put(data)
        if seen.began and not began and self.status < 400:
            self._loop.call_soon(self._first_token, self._call)

    def ended(self) -> None:
        call, watch = self._call, self.watch
        assert watch is not None, "an answer begins with its head"
        rest = watch.rest()
        call.complete = True
        self._loop.call_soon(self._over, call, None)
        for sink in tuple(call.sinks):  # who gets all that it waited for goes
            if rest:
                sink.put(rest)
            sink.end()

    def failed(self, fault: UpstreamFault) -> None:
        self._loop.call_soon(self._over, self._call, fault)

    def close(self) -> None:
        """Nothing comes any more. A call knows its passage: without this each would keep the other, and the
        request with its body, in memory until cycles are looked for."""
        del self._call, self._first_token, self._over

    def _pause(self, sink: Sink, hold: bool) -> None:
        """The slowest client sets the pace; so one that stands still is told from a dead one by TCP alone."""
        if hold:
            self._held_by.append(sink)
        elif sink in self._held_by:
            self._held_by.remove(sink)
        if self.connection is not None:
            self.connection.pause() if self._held_by else self.connection.resume()


class Relay:
    """An ``Exchange`` for one client and no call: what is passed on unscheduled."""

    def __init__(self) -> None:
        self.sink = Sink()
        self.connection: Connection | None = None

    def answered(self, status: int, headers: Sequence[Header]) -> None:
        self.sink.begin(AnswerHead.of(status, headers), self._pause)

    def data(self, data: bytes) -> None:
        self.sink.put(data)

    def ended(self) -> None:
        self.sink.end()

    def failed(self, fault: UpstreamFault) -> None:
        self.sink.end(ApiError(502, str(fault), kind="server_error", code="engine_cut_off"), clean=False)

    def _pause(self, sink: Sink, hold: bool) -> None:
        if self.connection is not None:
            self.connection.pause() if hold else self.connection.resume()
