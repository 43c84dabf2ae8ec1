"""Connections to one upstream server: made as needed, kept for a while, used again."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from agentsched.engines.upstream.wire import Connection, Exchange, Fault, Header, UpstreamFault

CONNECT_S = 5.0
IDLE_S = 4.0
"""Kept so long without use: servers on uvicorn, as SGLang and vLLM are, close after 5 s themselves."""

MOST_WATCH_S = 1.0
"""Idle and silent connections are looked for so often at least."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. ``base`` stands before every path."""

    host: str
    port: int
    tls: bool
    base: str

    @property
    def name(self) -> str:
        """As in a ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Of a URL, with or without the ``/v1`` that clients have in their base URL. Raises
        ``ValueError``."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a server; write http://HOST:PORT")
        if parts.query or parts.fragment or parts.username:
            raise ValueError(f"{url!r} may have a scheme, host, port and path only")
        tls = parts.scheme == "https"
        base = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, base)


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A request. ``path`` begins with a slash; ``lines`` are all headers but ``Host`` and
    ``Content-Length``."""

    method: str = "POST"
    path: str
    lines: bytes
    body: bytes = b""

    def head(self, base: str, host: str) -> bytes:
        """``base`` stands before the path, ``host`` is as in a ``Host`` header."""
        line = f"{self.method} {base}{self.path} HTTP/1.1\r\nHost: {host}\r\n".encode()
        if self.body or self.method not in ("GET", "HEAD"):
            return b"%b%bContent-Length: %d\r\n\r\n" % (line, self.lines, len(self.body))
        return line + self.lines + b"\r\n"


def header_lines(headers: Iterable[Header]) -> bytes:
    """As they are written."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class Pool:
    """All connections to one server. ``silence_s``: an exchange in which nothing comes for so long fails;
    while its reader holds it back, that does not count."""

    def __init__(self, address: Address, *, silence_s: float, connect_s: float = CONNECT_S) -> None:
        self.address, self._host = address, address.name
        self._silence_s = silence_s
        self._connect_s = connect_s
        self._watch_s = min(MOST_WATCH_S, silence_s / 4)
        self._tls = ssl.create_default_context() if address.tls else None
        self._idle: list[Connection] = []
        self._busy: dict[Connection, None] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False

    async def send(self, outgoing: Outgoing, exchange: Exchange) -> Connection:
        """Send a request; the exchange hears of the answer. Give the connection back with ``release``.

        Raises ``UpstreamFault`` if no connection can be had: nothing was sent then.
        """
        return self._send(self._take() or await self._connect(), outgoing, exchange)

    def send_at_once(self, outgoing: Outgoing, exchange: Exchange) -> Connection | None:
        """As ``send``, on a connection that is there already; None if there is none."""
        connection = self._take()
        return None if connection is None else self._send(connection, outgoing, exchange)

    def _send(self, connection: Connection, outgoing: Outgoing, exchange: Exchange) -> Connection:
        self._busy[connection] = None
        head = outgoing.head(self.address.base, self._host)
        connection.send(head, outgoing.body, exchange, bodyless=outgoing.method == "HEAD")
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self._watch_s, self._look)
        return connection

    def release(self, connection: Connection) -> None:
        """The exchange is over, or nobody wants the rest of it."""
        self._busy.pop(connection, None)
        if connection.usable and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self, fault: UpstreamFault | None = None) -> None:
        """Keep no connection any more. What runs goes on to its end, or fails now by this fault."""
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        if fault is not None:
            for connection in list(self._busy):
                connection.fail(fault)

    def heard_since(self, time_s: float) -> bool:
        """Whether anything has come by a running exchange since then (in the loop's time)."""
        return any(connection.heard_s > time_s for connection in self._busy)

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_s < IDLE_S:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        address = self.address
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    Connection, address.host, address.port, ssl=self._tls
                )
        except TimeoutError:
            raise UpstreamFault(Fault.REFUSED, f"no connection within {self._connect_s:g} s") from None
        except OSError as error:
            raise UpstreamFault(Fault.REFUSED, str(error)) from None
        return connection

    def _look(self) -> None:
        """Once in a while: drop what idles too long, and fail what is silent."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        kept = []
        for connection in self._idle:
            if connection.usable and connection.idle_s < IDLE_S:
                kept.append(connection)
            else:
                connection.close()
        self._idle = kept
        for connection in list(self._busy):
            if not connection.paused and now - connection.heard_s > self._silence_s:
                connection.fail(UpstreamFault(Fault.SILENT, f"not a byte in {self._silence_s:g} s"))
        self._watch = loop.call_later(self._watch_s, self._look) if self._idle or self._busy else None


class Fetched:
    """An ``Exchange`` that gathers a small answer: ``status``, ``body``."""

    def __init__(self, limit_bytes: int = 4_000_000) -> None:
        self.status = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []
        self._room_bytes = limit_bytes

    @property
    def body(self) -> bytes:
        return b"".join(self._parts)

    def answered(self, status: int, headers: object) -> None:
        self.status = status

    def data(self, data: bytes) -> None:
        self._room_bytes -= len(data)
        if self._room_bytes >= 0:
            self._parts.append(data)

    def ended(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def failed(self, fault: UpstreamFault) -> None:
        if not self.over.done():
            self.over.set_exception(fault)


async def fetch(pool: Pool, path: str, headers: list[Header], timeout_s: float) -> Fetched:
    """A small GET. Raises ``UpstreamFault``."""
    return await exchanged(pool, Outgoing(method="GET", path=path, lines=header_lines(headers)), timeout_s)


async def exchanged(pool: Pool, outgoing: Outgoing, timeout_s: float) -> Fetched:
    """A request whose answer is small. Raises ``UpstreamFault``."""
    fetched = Fetched()
    connection = await pool.send(outgoing, fetched)
    try:
        async with asyncio.timeout(timeout_s):
            await fetched.over
    except TimeoutError:
        raise UpstreamFault(Fault.SILENT, f"{outgoing.path} took more than {timeout_s:g} s") from None
    finally:
        pool.release(connection)
        with contextlib.suppress(UpstreamFault, asyncio.InvalidStateError, asyncio.CancelledError):
            fetched.over.exception()
    return fetched
