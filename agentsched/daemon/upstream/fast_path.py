"""Serves plain calls on bare protocols, and gives every other connection to aiohttp's server.

A full server for HTTP costs as much for each request as all that is decided about it. So the requests that
make up nearly all of the load are read here (``plain_requests.py``), and answered without it. At the first
request of a connection that is anything else (another path, chunks, ``Expect``, what is no HTTP), the
connection is aiohttp's from there on, with every byte that has come of it: there is nothing that this side
has to refuse, but for clients that are too slow.

One request of a connection is answered at a time; what comes meanwhile lies there until then, up to
``MOST_AHEAD_BYTES``, and in the kernel after that. A client that goes away has its request cancelled at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol, cast

from agentsched.daemon.errors import ApiError
from agentsched.daemon.upstream.client import Head
from agentsched.daemon.upstream.plain_requests import MOST_HEAD_BYTES, Heads, begins_plainly
from agentsched.daemon.upstream.waiting import PlainClient
from agentsched.engines.upstream.pool import header_lines
from agentsched.engines.upstream.wire import Header

_log = logging.getLogger(__name__)


class Answering(Protocol):
    """A request that is being answered."""

    def cancel(self) -> None:
        """The client is gone."""
        ...


Answer = Callable[[Head, bytes, PlainClient, object], Answering]
"""Answers a request (head and body) of the client, which is told when that is over (``answered``); the last
is the address that it comes from. Raises what stands in the place of an answer."""
Failure = Callable[[Head, Exception], tuple[int, list[Header], bytes]]
"""Status, headers and body in place of an answer that raised this before anything was sent."""

IDLE_S = 3630.0
"""Longer than what keeps connections to us, as a proxy before us may."""
HEAD_S = 30.0
BODY_S = 60.0
LEAST_BODY_BYTES_PER_S = 10_000.0
"""A body has ``BODY_S``, and the time that it takes at this rate."""
WATCH_S = 1.0
CLOSE_S = 1.0
MOST_AHEAD_BYTES = 64 * 1024

_NO_BODY = frozenset({204, 304})
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)


class FastPath:
    """All connections. ``full_server`` makes aiohttp's protocol for one; ``too_slow`` is the body of the 408
    that a client gets whose request does not come to an end."""

    def __init__(
        self,
        answer: Answer,
        failure: Failure,
        full_server: Callable[[], asyncio.Protocol],
        *,
        body_limit_bytes: int,
        too_slow: bytes,
    ) -> None:
        self.answer, self.failure = answer, failure
        self.full_server = full_server
        self.body_limit_bytes = body_limit_bytes
        self.too_slow = _TOO_SLOW % (len(too_slow), too_slow)
        self.heads = Heads()
        self.connections: dict[Connection, None] = {}
        self.closing = False
        self.loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._date, self._date_s = b"", 0.0
        self._watch: asyncio.TimerHandle | None = None

    async def listen(self, **where: object) -> None:
        """``where`` is as for ``loop.create_server``."""
        self._server = await self.loop.create_server(lambda: Connection(self), **where)  # type: ignore[call-overload]
        self._watch = self.loop.call_later(WATCH_S, self._look)

    async def close(self) -> None:
        """Take no more; what is being answered has a moment to end."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        if self._watch is not None:
            self._watch.cancel()
        for connection in list(self.connections):
            connection.close_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self.connections:
                    self._gone.clear()
                    await self._gone.wait()
        for connection in list(self.connections):
            connection.break_off()

    def lost(self, connection: Connection) -> None:
        """It is gone, or somebody else's."""
        self.connections.pop(connection, None)
        self._gone.set()

    def date(self) -> bytes:
        """The line of now, made once a second."""
        now_s = self.loop.time()
        if now_s >= self._date_s + 1.0 or not self._date:
            self._date, self._date_s = b"Date: %b\r\n" % formatdate(usegmt=True).encode(), now_s
        return self._date

    def _look(self) -> None:
        """Once in a while: end what is idle, or too slow."""
        now_s = self.loop.time()
        for connection in list(self.connections):
            connection.look(now_s)
        self._watch = self.loop.call_later(WATCH_S, self._look)


class Connection(asyncio.Protocol):
    """One connection, and the ``PlainClient`` of the request that it carries."""

    def __init__(self, path: FastPath) -> None:
        self._path = path
        self._loop = path.loop
        self._wire: asyncio.Transport
        self._peer: object = None
        self._head: Head | None = None
        self._body_bytes = 0
        self._parts: list[bytes] = []
        """Of the head; once that is known, of the body; while one is answered, of what follows."""
        self._bytes = 0
        self._answering: Answering | None = None
        self._busy = False
        """Whether a request is being answered, or its answer still lies here."""
        self._due_s: float | None = None
        """When the client has to have sent what it is at, in the loop's time."""
        self._begun = self._chunked = self._reading_held = self._refused = False
        self._writing_held: asyncio.Future[None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._peer = transport.get_extra_info("peername")
        self._path.connections[self] = None
        self._due_s = self._loop.time() + IDLE_S

    def data_received(self, data: bytes) -> None:
        if self._busy or self._refused:
            self._set_aside(data)
        elif self._head is None and not self._parts:
            self._read_head(data, begins=True)  # and mostly a whole request
        else:
            self._parts.append(data)
            self._bytes += len(data)
            if self._head is None:
                self._read_head(self._all(), begins=False)
            elif self._bytes >= self._body_bytes:
                self._begin_answer(self._head, self._all())

    def connection_lost(self, error: Exception | None) -> None:
        self._path.lost(self)
        if self._answering is not None:
            self._answering.cancel()
        if self._writing_held is not None and not self._writing_held.done():
            self._writing_held.set_exception(ConnectionResetError("the client went away"))
            self._writing_held.exception()  # perhaps nobody waits for it

    def pause_writing(self) -> None:
        self._writing_held = self._loop.create_future()

    def resume_writing(self) -> None:
        held, self._writing_held = self._writing_held, None
        if held is not None and not held.done():
            held.set_result(None)
        self._go_on()

    # Reading

    def _set_aside(self, data: bytes) -> None:
        """What comes while a request is being answered is for later."""
        if self._refused:
            return
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes > MOST_AHEAD_BYTES and not self._reading_held:
            self._wire.pause_reading()
            self._reading_held = True

    def _read_head(self, data: bytes, *, begins: bool) -> None:
        end = data.find(b"\r\n\r\n", 0, MOST_HEAD_BYTES) + 4
        if end < 4:
            # An empty line of another kind is no end of a plain head, but may be one of another.
            if len(data) >= MOST_HEAD_BYTES or not begins_plainly(data) or b"\n\n" in data:
                self._hand_over(data)
                return
            self._keep(data)
            if begins:
                self._due_s = self._loop.time() + HEAD_S
            return
        read = self._path.heads.read(data[:end])
        if read is None:
            self._hand_over(data)
            return
        self._head, self._body_bytes = head, body_bytes = read
        if body_bytes > self._path.body_limit_bytes:
            self._refuse(head)
        elif len(data) - end >= body_bytes:
            self._begin_answer(head, data[end:])
        else:
            self._keep(data[end:])
            self._due_s = self._loop.time() + BODY_S + body_bytes / LEAST_BODY_BYTES_PER_S

    def _all(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._bytes = 0
        return data

    def _keep(self, data: bytes) -> None:
        if data:
            self._parts.append(data)
            self._bytes = len(data)

    def _hand_over(self, data: bytes) -> None:
        """The connection is the full server's from here on."""
        self._path.lost(self)
        full = self._path.full_server()
        self._wire.set_protocol(full)
        full.connection_made(self._wire)
        full.data_received(data)

    def _refuse(self, head: Head) -> None:
        """Its body is too large: say so, and read no more than the client needs to hear that."""
        self._refused, self._due_s = True, self._loop.time() + HEAD_S
        most = self._path.body_limit_bytes
        error = ApiError(
            413,
            f"the body is too large: {self._body_bytes:,} bytes, and {most:,} are read at most",
            code="request_too_large",
        )
        status, headers, body = self._path.failure(head, error)
        length = (b"Content-Length", b"%d" % len(body))
        self._wire.write(self._lines(status, headers, length, (b"Connection", b"close")) + body)
        if self._wire.can_write_eof():
            self._wire.write_eof()

    def _begin_answer(self, head: Head, data: bytes) -> None:
        """``data`` is its body, and perhaps what follows that."""
        length = self._body_bytes
        if len(data) > length:
            self._keep(data[length:])
            data = data[:length]
        self._due_s, self._begun, self._busy = None, False, True
        try:
            self._answering = self._path.answer(head, data, self, self._peer)
        except Exception as error:
            self.answered(error)

    def _fail(self, head: Head, error: Exception) -> None:
        if isinstance(error, ConnectionResetError):
            _log.info("%s: a client went away", head.path)
        elif self._begun:
            self._path.failure(head, error)  # which tells the log, if it is a fault of ours
            self.break_off()
        else:
            self.write_whole(*self._path.failure(head, error))

    def _go_on(self) -> None:
        """To the next request, which may be here already, unless this one is not over."""
        if not self._busy or self._answering or self._writing_held or self._wire.is_closing():
            return
        self._busy = False
        if self._path.closing:
            self._wire.close()
            return
        if self._reading_held:
            self._reading_held = False
            self._wire.resume_reading()
        self._due_s = self._loop.time() + IDLE_S
        if ahead := self._all():
            self.data_received(ahead)

    def look(self, now_s: float) -> None:
        """End the connection if its client is too slow."""
        if self._due_s is None or now_s < self._due_s:
            return
        if (self._parts or self._head is not None) and not self._refused:
            self._wire.write(self._path.too_slow)
        self._wire.close()

    def close_idle(self) -> None:
        """Close it, unless a request is being answered: that one is its last."""
        if not self._busy:
            self._wire.close()

    # PlainClient

    def answered(self, error: Exception | None) -> None:
        head, self._head, self._answering = self._head, None, None
        if self._wire.is_closing():
            return
        if error is not None and head is not None:
            self._fail(head, error)
        if self._bytes:
            self._loop.call_soon(self._go_on)
        else:
            self._go_on()  # or once the client has read what lies here

    def write_whole(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        if self._wire.is_closing():
            return
        self._begun = True
        if status in _NO_BODY:
            self._wire.write(self._lines(status, headers))
        else:
            length = (b"Content-Length", b"%d" % len(body))
            self._wire.write(self._lines(status, headers, length) + body)

    async def begin(self, status: int, headers: Sequence[Header], length: int | None = None) -> None:
        self._begun, self._chunked = True, length is None
        end = (b"Transfer-Encoding", b"chunked") if length is None else (b"Content-Length", b"%d" % length)
        await self._send(self._lines(status, headers, end))

    async def write(self, data: bytes) -> None:
        await self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def end(self) -> None:
        if self._chunked:
            await self._send(b"0\r\n\r\n")

    async def whole(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        self.write_whole(status, headers, body)
        await self._send()

    def break_off(self) -> None:
        self._wire.abort()

    def _lines(self, status: int, headers: Sequence[Header], *more: Header) -> bytes:
        line = _LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        lines = header_lines([*headers, *more])
        date = b"" if b"\ndate:" in (line + lines).lower() else self._path.date()
        return b"%b%b%b\r\n" % (line, lines, date)

    async def _send(self, data: bytes = b"") -> None:
        if self._wire.is_closing():
            raise ConnectionResetError("the client went away")
        if data:
            self._wire.write(data)
        if self._writing_held is not None:
            await self._writing_held
