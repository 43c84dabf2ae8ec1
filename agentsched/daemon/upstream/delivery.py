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

from agentsched.daemon.apis import Writer
from agentsched.daemon.errors import ApiError
from agentsched.daemon.patience import Patience
from agentsched.daemon.upstream.client import Client
from agentsched.daemon.upstream.passage import PassedCall, Sink
from agentsched.engines.upstream.wire import Header

_log = logging.getLogger(__name__)

_SPACE = b" "
BOOKS_S = 1.0
"""An answer that has come in full is booked in the next round of the loop; it waits no longer than this."""


class PassDelivery:
    """``kept`` waits until all that is known is kept: a program's first answer does not end before. The books
    of others are done right after their last bytes are written, and before anything else is read."""

    def __init__(self, patience: Patience, kept: Callable[[], Awaitable[None]] | None = None) -> None:
        self._patience = patience
        self._kept = kept

    def patience_s(self, call: PassedCall) -> float:
        """For how long nothing is said to a client that waits for this call."""
        if not call.asked.stream:
            return self._patience.silence_s
        return 0.0 if call.held else self._patience.ping_s

    def must_be_kept(self, call: PassedCall) -> bool:
        """Whether the end of its answer waits until it is kept."""
        return call.first and self._kept is not None

    async def deliver(
        self, client: Client, call: PassedCall, sink: Sink, names: Sequence[Header], patience_s: float
    ) -> None:
        """The whole answer. Raises the ``ApiError`` that stands in its place, where nothing was sent yet."""
        stream = call.asked.stream
        settle = partial(self._settle, call, self._kept) if call.first and self._kept is not None else None
        if await sink.begun(patience_s):
            if sink.head is not None:
                later = partial(call.request.writer, call.name, int(time.time()))
                await passed(client, sink, names, later, settle)
                return
            assert sink.error is not None
            raise sink.error
        writer = call.request.writer(call.name, int(time.time()))
        try:
            await client.begin(200, [*_waiting_headers(stream=stream), *names])
            await client.write(writer.ping() if stream else _SPACE)
            while not await sink.begun(self._patience.ping_s):
                await client.write(writer.ping() if stream else _SPACE)
            if sink.head is not None and sink.head.status == 200:
                await _pass(client, sink, (lambda: writer) if stream else None, settle)
            elif stream:
                await client.write(writer.fail(await _error(sink)))
                await client.end()
            else:
                client.break_off()
        except ConnectionResetError:
            _log.info("call %s: a client went away", call.name)

    async def _settle(self, call: PassedCall, kept: Callable[[], Awaitable[None]]) -> None:
        if not call.ended:
            await call.over(BOOKS_S)
        await kept()


async def passed(
    client: Client,
    sink: Sink,
    names: Sequence[Header] = (),
    writer: Callable[[], Writer] | None = None,
    settle: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """An answer that begins with the engine's own status and headers; short ones go in one piece. ``settle``
    is what has to be before it ends."""
    head = sink.head
    assert head is not None, "the engine has answered"
    stream = head.stream
    headers = [*head.headers, *names]
    if not stream and await sink.gathered():
        if sink.error is not None:
            raise sink.error
        if settle is not None:
            await settle()
        await client.whole(head.status, headers, sink.take())
        return
    try:
        await client.begin(head.status, headers, None if stream else head.length)
        await _pass(client, sink, writer if stream else None, settle)
    except ConnectionResetError:
        _log.info("a client went away in mid-answer")


async def _pass(
    client: Client,
    sink: Sink,
    writer: Callable[[], Writer] | None,
    settle: Callable[[], Awaitable[None]] | None,
) -> None:
    while True:
        await sink.more()
        if data := sink.take():
            await client.write(data)
        elif sink.over:
            break
    if sink.error is None:
        if settle is not None:
            await settle()
        await client.end()
    elif writer is not None and sink.clean:
        await client.write(writer().fail(sink.error))
        await client.end()
    else:
        client.break_off()


async def _error(sink: Sink) -> ApiError:
    """What the engine's answer says, where it comes too late to be the answer."""
    if sink.error is not None:
        return sink.error
    await sink.gathered()
    assert sink.head is not None, "the engine has answered"
    status, text = sink.head.status, sink.take().decode("utf-8", "replace")
    kind = "invalid_request_error" if status < 500 else "server_error"
    return ApiError(status, f"the engine answered {status}: {text}", kind=kind)


def _waiting_headers(*, stream: bool) -> list[Header]:
    if stream:
        return [(b"Content-Type", b"text/event-stream"), (b"Cache-Control", b"no-cache")]
    return [(b"Content-Type", b"application/json")]
