"""HTTP/1.1 to an upstream server, on bare protocols: what arrives goes on within the same step of the loop.

One ``Connection`` carries one ``Exchange`` at a time. Bodies are bytes, passed on as they come, never
gathered or decoded. A slow reader holds the server back (``pause``); closing an exchange before its end
closes the connection, which is how a server learns that nobody wants the answer any more.

A stream parser in C (httptools) costs a tenth of a full client a chunk; that is what a proxy in Python
lives on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import Protocol, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpResponseParser

Header = tuple[bytes, bytes]

LARGEST_HEAD_BYTES = 64 * 1024
TOGETHER_BYTES = 64 * 1024
"""Smaller bodies are sent with their heads: to copy one is cheaper than to write twice."""
_NO_BODY = frozenset({204, 304})


class Fault(Enum):
    """What went wrong with an upstream server."""

    REFUSED = "cannot be connected to"
    STALE = "closed an idle connection as it was used again"
    CUT = "broke the connection off"
    MALFORMED = "answered what is no HTTP"
    SILENT = "has not been heard of for too long"


class UpstreamFault(Exception):
    """An exchange that failed. ``unsent``: the server has certainly not begun with it, so another may."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(f"the engine {fault.value}" + (f": {detail}" if detail else ""))
        self.fault = fault
        self.unsent = fault in (Fault.REFUSED, Fault.STALE)


class Exchange(Protocol):
    """Who a response is for. ``answered`` once, ``data`` as often as need be, and at the end ``ended``; or
    ``failed`` at any time instead. Nothing comes after either of these."""

    def answered(self, status: int, headers: Sequence[Header]) -> None: ...

    def data(self, data: bytes) -> None: ...

    def ended(self) -> None: ...

    def failed(self, fault: UpstreamFault) -> None: ...


class Connection(asyncio.Protocol):
    """One connection. ``usable`` says whether it can carry another exchange."""

    def __init__(self) -> None:
        self._idle_since_s = 0.0
        self.heard_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser = HttpResponseParser(self)
        self._headers: list[Header] = []
        self._head_bytes = 0
        self._status = 0
        self._bodyless = False
        self._to_the_end = False  # the body has no length: it ends with the connection
        self._used = False
        self._heard = False
        self._broken = False
        self.paused = False

    @property
    def usable(self) -> bool:
        transport = self._transport
        return not (self._broken or self._exchange or transport is None or transport.is_closing())

    @property
    def idle_s(self) -> float:
        """For how long it has carried nothing, since the end of its last exchange."""
        return self._loop.time() - self._idle_since_s

    def send(self, head: bytes, body: bytes, exchange: Exchange, *, bodyless: bool = False) -> None:
        """Begin an exchange. ``bodyless``: the response to a HEAD request has none, whatever it says."""
        assert self._transport is not None
        assert self._exchange is None
        self._exchange, self._bodyless = exchange, bodyless
        self._heard = False
        self.heard_s = self._loop.time()
        if len(body) < TOGETHER_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def close(self) -> None:
        """At once, whatever it carries; its exchange hears no more."""
        self._exchange, self._broken = None, True
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Read no more for now."""
        if self._transport is not None and not self.paused and not self._transport.is_closing():
            self._transport.pause_reading()
            self.paused = True

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and self.paused and not self._transport.is_closing():
            self._transport.resume_reading()
            self.heard_s, self.paused = self._loop.time(), False

    def fail(self, fault: UpstreamFault) -> None:
        """End the exchange and the connection."""
        exchange = self._exchange
        self.close()
        if exchange is not None:
            exchange.failed(fault)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self.heard_s = self._loop.time()
        self._heard = True
        if self._exchange is None:
            self.close()  # nobody asked
            return
        if self._status == 0:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserCallbackError:
            raise  # our own fault: the loop logs it and closes the connection
        except HttpParserError as error:
            self.fail(UpstreamFault(Fault.MALFORMED, str(error)))
            return
        if self._status == 0 and self._head_bytes > LARGEST_HEAD_BYTES:
            self.fail(UpstreamFault(Fault.MALFORMED, f"a head of more than {LARGEST_HEAD_BYTES:,} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        self._broken = True
        exchange = self._exchange
        if exchange is None:
            return
        if error is None and self._to_the_end:
            self._exchange = None
            exchange.ended()
            return
        stale = self._used and not self._heard
        self.fail(UpstreamFault(Fault.STALE if stale else Fault.CUT, str(error or "")))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        self._head_bytes = 0
        if status < 200 or self._exchange is None:
            return  # an interim response; the real one follows
        self._status = status
        self._to_the_end = not (self._bodyless or status in _NO_BODY or _has_end(headers))
        self._exchange.answered(status, headers)
        if self._bodyless:
            self._finish(reusable=False)

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.data(body)

    def on_message_complete(self) -> None:
        if self._status and self._exchange is not None:
            self._finish(reusable=self._parser.should_keep_alive())

    def _finish(self, *, reusable: bool) -> None:
        exchange, self._exchange = self._exchange, None
        self._status, self._used = 0, True
        self._idle_since_s = self._loop.time()
        if not reusable:
            self.close()
        if exchange is not None:
            exchange.ended()


def _has_end(headers: Sequence[Header]) -> bool:
    """Whether the head says where the body ends."""
    for name, _ in headers:
        if len(name) in (14, 17) and name.lower() in (b"content-length", b"transfer-encoding"):
            return True
    return False
