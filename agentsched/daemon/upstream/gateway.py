"""The HTTP side before upstream engines: calls are scheduled and passed on, all else below ``/v1`` just
passed on."""

from __future__ import annotations

import time
from functools import partial
from typing import cast

from aiohttp import web

from agentsched.daemon.access import TENANCY
from agentsched.daemon.apis import Request, Writer
from agentsched.daemon.apis.chat import ChatWriter
from agentsched.daemon.apis.completions import CompletionWriter
from agentsched.daemon.apis.messages import MessageWriter
from agentsched.daemon.apis.reading import check_program
from agentsched.daemon.apis.responses_writer import ResponseWriter
from agentsched.daemon.errors import engine_gone
from agentsched.daemon.gateway import (
    CALL_HEADER,
    DEADLINE_HEADER,
    RETRY_HEADER,
    Gateway,
    as_failure,
    failure_body,
    stated_deadline_s,
)
from agentsched.daemon.identity import Ask
from agentsched.daemon.operations import read_body
from agentsched.daemon.signals import PROGRAM_HEADER, Origin
from agentsched.daemon.tenancy import Tenancy
from agentsched.daemon.upstream.bodies import PassedHeaders, headers_on
from agentsched.daemon.upstream.calls import PassedCalls
from agentsched.daemon.upstream.client import AiohttpClient, Head
from agentsched.daemon.upstream.delivery import PassDelivery, passed
from agentsched.daemon.upstream.passage import PassedCall, Relay, Sink
from agentsched.daemon.upstream.reading import Asked, lasting_digest, read
from agentsched.daemon.upstream.waiting import PlainClient, Waiting, WaitingRooms
from agentsched.engines.upstream.engine import UpstreamEngine
from agentsched.engines.upstream.paths import CHAT, COMPLETIONS, MESSAGES, PATHS
from agentsched.engines.upstream.pool import Outgoing
from agentsched.engines.upstream.wire import Header, UpstreamFault

_PROGRAM, _CALL = PROGRAM_HEADER.encode(), CALL_HEADER.encode()


class PassGateway(Gateway):
    """See ``Gateway``. ``passing`` has to be called once, before the application is made."""

    def passing(self, delivery: PassDelivery, *, api_key: str | None) -> None:
        """How to pass calls on: ``api_key`` is the upstream's, in place of what clients send. Keys that are
        for us are not passed on in any case."""
        self._pass_delivery = delivery
        self._rooms = WaitingRooms(delivery, self._over)
        self._api_key = api_key

    def _passed_headers(self, head: Head) -> PassedHeaders:
        ours = self._access.locked
        if head.passed_on is None or head.passed_on[0] != ours:
            head.passed_on = (ours, headers_on(head.headers, self._api_key, ours=ours))
        return head.passed_on[1]

    def _agents_routes(self, base: str) -> list[web.RouteDef]:
        return [
            *(web.post(base + path, partial(self._serve_call, path)) for path in PATHS),
            web.get(base + "/", self._root),
            web.post(base + "/tokenize", self._pass_by),
            web.route("*", base + "/v1/{rest:.*}", self._pass_by),
        ]

    async def _serve_call(self, path: str, http: web.Request) -> web.StreamResponse:
        """A call of an agent, by a connection that is aiohttp's."""
        head = Head(
            path,
            http.rel_url.raw_query_string,
            http.match_info.get("program"),
            http.raw_headers,
            {name.lower(): value for name, value in http.headers.items()},
        )
        client = AiohttpClient(http)
        call, sink = self._pass_call(head, await read_body(http), http[TENANCY])
        error: BaseException | None = None
        try:
            patience_s = self._pass_delivery.patience_s(call)
            await self._pass_delivery.deliver(client, call, sink, _names(call), patience_s)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._over(call, sink, error)
        return client.response

    def answer(self, head: Head, body: bytes, client: PlainClient, peer: object) -> Waiting:
        """A call of an agent, by a connection of the fast path. Raises what is to be told by ``failure``."""
        call, sink = self._pass_call(head, body, self._access.tenancy(head.named, peer))
        return self._rooms.wait(client, call, sink, _names(call))

    def failure(self, head: Head, error: Exception) -> tuple[int, list[Header], bytes]:
        """Status, headers and body of an answer that is an error."""
        failed = as_failure(error, f"POST {head.path}")
        told = {"Content-Type": "application/json; charset=utf-8"} | failed.headers()
        headers = [(name.encode(), value.encode()) for name, value in told.items()]
        return failed.status, headers, failure_body(failed, head.path, head.named)

    def _pass_call(self, head: Head, data: bytes, tenancy: Tenancy) -> tuple[PassedCall, Sink]:
        """Identified, and on its way to a server; and where its answer comes, until ``_over``."""
        tenancy.charge(time.monotonic())
        path, headers = head.path, head.named
        asked, transcript = read(path, data, care="claude-code-header" not in self._care.off)
        if (stated := headers.get(PROGRAM_HEADER)) is not None:
            check_program(stated, PROGRAM_HEADER)
        origin = head.origin
        if asked.signals:
            origin = Origin(headers=headers, body=asked.signals, path=head.program)
        ask = Ask(
            chat=asked.chat,
            digest=asked.digest,
            origin=origin,
            retry=headers.get(RETRY_HEADER, "0") != "0",
            transcript=transcript,
            lasting=partial(lasting_digest, path, data),
        )
        writer = partial(_writer, asked)
        calls = cast("PassedCalls", self._calls)
        call = calls.pass_on(
            tenancy,
            ask,
            asked,
            Request(chat=asked.chat, raw=asked.signals, writer=writer, stream=asked.stream),
            path=_asked_for(path, head.query),
            headers=self._passed_headers(head),
            body=asked.edits.applied(data),
            deadline_s=stated_deadline_s(headers.get(DEADLINE_HEADER)),
        )
        if call.clients > 1:
            tenancy.refund()
            self._metrics.retry_attached()
        else:
            self._metrics.identified(call.claim.known_by)
        return call, call.attach()

    def _over(self, call: PassedCall, sink: Sink, error: BaseException | None) -> None:
        """A client has its answer, or it is told of an error, or gone."""
        if error is None:
            # Its books are done before that, in the next step of the loop.
            self._rooms.loop.call_soon(self._charge, call, call.tenancy.name)
        call.detach(sink)
        self._calls.leave(call)

    async def _pass_by(self, http: web.Request) -> web.StreamResponse:
        """What is no call of an agent: to the first engine, unscheduled."""
        http[TENANCY].charge(time.monotonic())
        data = await read_body(http)
        if self._calls.unavailable is not None:
            raise self._calls.unavailable
        engines = self._calls.engines
        if not engines:
            raise engine_gone("no engine is there now")
        server = cast("UpstreamEngine", engines[min(engines)])
        program = http.match_info.get("program")
        path = http.rel_url.raw_path
        if program is not None:
            path = "/" + path.split("/", 3)[3]
        outgoing = Outgoing(
            method=http.method,
            path=_asked_for(path, http.rel_url.raw_query_string),
            lines=headers_on(http.raw_headers, self._api_key, ours=self._access.locked).lines,
            body=data,
        )
        relay = Relay()
        try:
            relay.connection = await server.send(outgoing, relay)
        except UpstreamFault as fault:
            raise engine_gone(str(fault)) from fault
        try:
            await relay.sink.begun(None)
            if relay.sink.error is not None:
                raise relay.sink.error
            client = AiohttpClient(http)
            await passed(client, relay.sink)
            return client.response
        finally:
            server.release(relay.connection)


def _names(call: PassedCall) -> list[Header]:
    return [(_PROGRAM, call.stated_program.encode()), (_CALL, call.name.encode())]


def _asked_for(path: str, query: str) -> str:
    return f"{path}?{query}" if query else path


def _writer(asked: Asked, call: str, created_unix_s: int) -> Writer:
    """For what the daemon itself says to a client: signs of life, and errors."""
    model = asked.chat.model
    if asked.path == CHAT:
        return ChatWriter(call, created_unix_s, model=model, include_usage=False)
    if asked.path == COMPLETIONS:
        return CompletionWriter(call, created_unix_s, model=model, include_usage=False)
    if asked.path == MESSAGES:
        return MessageWriter(call, created_unix_s, model=model)
    return ResponseWriter(call, created_unix_s, asked={"model": model}, wire_tools={})
