"""Brings a call's answer to one HTTP client, and keeps its connection alive while the call waits. What
returns is on its way.

A stream gets its headers as soon as it is known to wait, and signs of life after that. An answer that is
not streamed has no such room: its status stands before its body. So it is silent for ``Patience.silence_s``,
which leaves everything that fails by then its proper status. After that it begins, with status 200 and
white space, which may stand before any JSON document. Should the call fail then, the connection is
broken off: clients take that for what it is and try again, while 200 with an error in it would be
taken for an answer.

A program's first answer ends only when it is kept: whoever has got one is known to the next daemon, whenever
this one dies.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from agentsched.daemon.apis import Writer
from agentsched.daemon.livecall import LiveCall
from agentsched.daemon.patience import Patience

_log = logging.getLogger(__name__)

_SPACE = b" "


class Delivery:
    """Answers clients by the clock: ``Patience.ping_s`` between signs of life. ``kept`` waits until all that
    is known is kept."""

    def __init__(self, patience: Patience, kept: Callable[[], Awaitable[None]] | None = None) -> None:
        self._patience = patience
        self._kept = kept

    async def whole(
        self, http: web.Request, call: LiveCall, writer: Writer, headers: dict[str, str]
    ) -> web.StreamResponse:
        """One JSON document. Raises the ``ApiError`` that the call ends with, if it does so in time."""
        if await call.over(self._patience.silence_s):
            ending = await call.end()
            await self._keep(call)
            body = writer.whole(call.pieces, ending)
            answer = web.Response(body=body, content_type="application/json", headers=headers)
            try:
                await answer.prepare(http)
                await answer.write_eof()
            except ConnectionResetError:
                _log.info("call %s: a client went away before its answer", call.name)
            return answer
        response = web.StreamResponse(headers={"Content-Type": "application/json", **headers})
        try:
            await response.prepare(http)
            await response.write(_SPACE)
            while not await call.over(self._patience.ping_s):
                await response.write(_SPACE)
            if call.ending is not None:
                await self._keep(call)
                await response.write(writer.whole(call.pieces, call.ending))
                await response.write_eof()
            elif http.transport is not None:
                _log.info("call %s failed after its answer had begun: %s", call.name, call.error)
                http.transport.abort()
        except ConnectionResetError:
            _log.info("call %s: a client went away while it waited", call.name)
        return response

    async def stream(
        self, http: web.Request, call: LiveCall, writer: Writer, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Server-sent events. Raises the ``ApiError`` of a call that fails before anything was sent."""
        # What fails at once gets a proper status: headers wait for the first token, but never for a seat.
        if not call.held:
            await call.more(0, self._patience.ping_s)
        if call.error is not None and not call.pieces:
            raise call.error
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **headers}
        response = web.StreamResponse(headers=headers)
        try:
            await response.prepare(http)
            if not call.pieces and not call.ended:
                await response.write(writer.ping())
            await self._write(response, call, writer)
            await response.write_eof()
        except ConnectionResetError:
            _log.info("call %s: a client went away in mid-stream", call.name)
        return response

    async def _keep(self, call: LiveCall) -> None:
        if call.first and self._kept is not None:
            await self._kept()

    async def _write(self, response: web.StreamResponse, call: LiveCall, writer: Writer) -> None:
        seen = 0
        begun = False
        while True:
            if not await call.more(seen, self._patience.ping_s):
                await response.write(writer.ping())
                continue
            data = [] if begun or (call.error and not call.pieces) else [writer.begin(call.usage)]
            begun = True
            for piece in call.pieces[seen:]:
                call.delivered = True
                data.append(writer.piece(piece))
            seen = len(call.pieces)
            if call.error is not None:
                data.append(writer.fail(call.error))
            elif call.ending is not None:
                await self._keep(call)
                data.append(writer.end(call.ending))
            await response.write(b"".join(data))
            if call.ended and seen == len(call.pieces):
                return
