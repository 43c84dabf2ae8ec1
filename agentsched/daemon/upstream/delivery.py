"""Brings an engine's answer to one client as it is, and keeps the connection alive before it begins.

Waiting is as in ``agentsched.daemon.delivery``: a stream gets headers and signs of life, another answer
white space once it has been silent for long. After that the status has gone out: an error that follows
becomes an event of the stream, or breaks the connection off. As soon as the engine answers, nothing is
added any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aiohttp import web

from agentsched.daemon.apis import Writer
from agentsched.daemon.errors import ApiError
from agentsched.daemon.patience import Patience
from agentsched.daemon.upstream.bodies import headers_back, is_stream
from agentsched.daemon.upstream.passage import PassedCall, Sink
from agentsched.engines.upstream.wire import Header

_log = logging.getLogger(__name__)

_SPACE = b" "
BOOKS_S = 1.0
"""An answer that has come in full is booked in the next round of the loop."""


class PassDelivery:
    """``kept`` waits until all that is known is kept; no answer ends before its books are done."""

    def __init__(self, patience: Patience, kept: Callable[[], Awaitable[None]] | None = None) -> None:
        self._patience = patience
        self._kept = kept

    async def deliver(
        self, http: web.Request, call: PassedCall, sink: Sink, names: dict[str, str]
    ) -> web.StreamResponse:
        """The whole answer. Raises the ``ApiError`` that stands in its place, where nothing was sent yet."""
        stream, settle = call.asked.stream, partial(self._settle, call)
        patience_s = (0.0 if call.held else self._patience.ping_s) if stream else self._patience.silence_s
        if await sink.begun(patience_s):
            if sink.status:
                later = partial(call.request.writer, call.name, int(time.time()))
                return await passed(http, sink, names, later, settle)
            assert sink.error is not None
            raise sink.error
        writer = call.request.writer(call.name, int(time.time()))
        response = web.StreamResponse(headers={**_waiting_headers(stream=stream), **names})
        try:
            await response.prepare(http)
            await response.write(writer.ping() if stream else _SPACE)
            while not await sink.begun(self._patience.ping_s):
                await response.write(writer.ping() if stream else _SPACE)
            if sink.status == 200:
                await _pass(response, sink, http, (lambda: writer) if stream else None, settle)
            elif stream:
                await response.write(writer.fail(await _error(sink)))
                await response.write_eof()
            else:
                _break_off(http)
        except ConnectionResetError:
            _log.info("call %s: a client went away", call.name)
        return response

    async def _settle(self, call: PassedCall) -> None:
        if not call.ended:
            await call.over(BOOKS_S)
        if call.first and self._kept is not None:
            await self._kept()


async def passed(
    http: web.Request,
    sink: Sink,
    names: dict[str, str],
    writer: Callable[[], Writer] | None = None,
    settle: Callable[[], Awaitable[None]] | None = None,
) -> web.StreamResponse:
    """An answer that begins with the engine's own status and headers; short ones go in one piece. ``settle``
    is what has to be before it ends."""
    headers = _client_headers(sink.headers, names)
    stream = is_stream(sink.headers)
    if not stream and await sink.gathered():
        if sink.error is not None:
            raise sink.error
        if settle is not None:
            await settle()
        return web.Response(body=sink.take(), status=sink.status, headers=headers)
    response = web.StreamResponse(status=sink.status, headers=headers)
    if not stream:
        response.content_length = _length(sink.headers)
    try:
        await response.prepare(http)
        await _pass(response, sink, http, writer if stream else None, settle)
    except ConnectionResetError:
        _log.info("a client went away in mid-answer")
    return response


async def _pass(
    response: web.StreamResponse,
    sink: Sink,
    http: web.Request,
    writer: Callable[[], Writer] | None,
    settle: Callable[[], Awaitable[None]] | None,
) -> None:
    while True:
        await sink.more()
        if data := sink.take():
            await response.write(data)
        elif sink.over:
            break
    if sink.error is None:
        if settle is not None:
            await settle()
        await response.write_eof()
    elif writer is not None and sink.clean:
        await response.write(writer().fail(sink.error))
        await response.write_eof()
    else:
        _break_off(http)


async def _error(sink: Sink) -> ApiError:
    """What the engine's answer says, where it comes too late to be the answer."""
    if sink.error is not None:
        return sink.error
    await sink.gathered()
    text = sink.take().decode("utf-8", "replace")
    kind = "invalid_request_error" if sink.status < 500 else "server_error"
    return ApiError(sink.status, f"the engine answered {sink.status}: {text}", kind=kind)


def _length(headers: Sequence[Header]) -> int | None:
    return next((int(v) for n, v in headers if n.lower() == b"content-length" and v.isdigit()), None)


def _break_off(http: web.Request) -> None:
    if http.transport is not None:
        http.transport.abort()


def _waiting_headers(*, stream: bool) -> dict[str, str]:
    if stream:
        return {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    return {"Content-Type": "application/json"}


def _client_headers(headers: Sequence[Header], names: dict[str, str]) -> list[tuple[str, str]]:
    passed = [
        (name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in headers_back(headers)
    ]
    return [*passed, *names.items()]
