"""The HTTP side before upstream engines: calls are scheduled and passed on, all else below ``/v1`` just
passed on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
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
    DEADLINE_HEADER,
    RETRY_HEADER,
    Gateway,
    as_failure,
    call_names,
    failure_body,
    stated_deadline_s,
)
from agentsched.daemon.identity import Ask
from agentsched.daemon.operations import read_body
from agentsched.daemon.signals import PROGRAM_HEADER, Origin
from agentsched.daemon.tenancy import Tenancy
from agentsched.daemon.upstream.bodies import headers_on
from agentsched.daemon.upstream.calls import PassedCalls
from agentsched.daemon.upstream.client import AiohttpClient, Client, Incoming
from agentsched.daemon.upstream.delivery import PassDelivery, passed
from agentsched.daemon.upstream.passage import Relay
from agentsched.daemon.upstream.reading import Asked, read
from agentsched.engines.upstream.engine import UpstreamEngine
from agentsched.engines.upstream.paths import CHAT, COMPLETIONS, MESSAGES, PATHS
from agentsched.engines.upstream.pool import Outgoing
from agentsched.engines.upstream.wire import Header, UpstreamFault


class PassGateway(Gateway):
    """See ``Gateway``. ``passing`` has to be called once, before the application is made."""

    def passing(self, delivery: PassDelivery, *, api_key: str | None) -> None:
        """How to pass calls on: ``api_key`` is the upstream's, in place of what clients send. Keys that are
        for us are not passed on in any case."""
        self._pass_delivery = delivery
        self._api_key = api_key

    def _passed_headers(self, headers: Iterable[Header]) -> list[Header]:
        return headers_on(headers, self._api_key, ours=self._access.locked)

    def _agents_routes(self, base: str) -> list[web.RouteDef]:
        return [
            *(web.post(base + path, partial(self._serve_call, path)) for path in PATHS),
            web.get(base + "/", self._root),
            web.post(base + "/tokenize", self._pass_by),
            web.route("*", base + "/v1/{rest:.*}", self._pass_by),
        ]

    async def _serve_call(self, path: str, http: web.Request) -> web.StreamResponse:
        """A call of an agent, by a connection that is aiohttp's."""
        incoming = Incoming(
            path=path,
            query=http.rel_url.raw_query_string,
            program=http.match_info.get("program"),
            headers=http.raw_headers,
            named={name.lower(): value for name, value in http.headers.items()},
            body=await read_body(http),
        )
        client = AiohttpClient(http)
        await self._pass_call(incoming, client, http[TENANCY])
        return client.response

    async def answer(self, incoming: Incoming, client: Client, peer: object) -> None:
        """A call of an agent, by a connection of the fast path. Raises what is to be told by ``failure``,
        as long as nothing has been sent."""
        await self._pass_call(incoming, client, self._access.tenancy(incoming.named, peer))

    def failure(self, incoming: Incoming, error: Exception) -> tuple[int, list[Header], bytes]:
        """Status, headers and body of an answer that is an error."""
        failed = as_failure(error, f"POST {incoming.path}")
        told = {"Content-Type": "application/json; charset=utf-8"} | failed.headers()
        headers = [(name.encode(), value.encode()) for name, value in told.items()]
        return failed.status, headers, failure_body(failed, incoming.path, incoming.named)

    async def _pass_call(self, incoming: Incoming, client: Client, tenancy: Tenancy) -> None:
        """Identified, scheduled, and then passed on."""
        tenancy.charge(time.monotonic())
        path, headers, data = incoming.path, incoming.named, incoming.body
        asked = read(path, data, care="claude-code-header" not in self._care.off)
        if (stated := headers.get(PROGRAM_HEADER)) is not None:
            check_program(stated, PROGRAM_HEADER)
        ask = Ask(
            chat=asked.chat,
            digest=asked.digest,
            origin=Origin(headers=headers, body=asked.signals, path=incoming.program),
            retry=headers.get(RETRY_HEADER, "0") != "0",
            transcript=asked.transcript,
        )
        writer = partial(_writer, asked)
        calls = cast("PassedCalls", self._calls)
        call = calls.pass_on(
            tenancy,
            ask,
            asked,
            Request(chat=asked.chat, raw=asked.signals, writer=writer, stream=asked.stream),
            path=_asked_for(path, incoming.query),
            headers=self._passed_headers(incoming.headers),
            body=asked.edits.applied(data),
            deadline_s=stated_deadline_s(headers.get(DEADLINE_HEADER)),
        )
        sink = call.attach()
        try:
            if call.clients > 1:
                tenancy.refund()
                self._metrics.retry_attached()
            else:
                self._metrics.identified(call.claim.known_by)
            names = [(name.encode(), value.encode()) for name, value in call_names(call).items()]
            await self._pass_delivery.deliver(client, call, sink, names)
            # Its books are done within this step of the loop, whether the client stays for that or not.
            asyncio.get_running_loop().call_soon(self._charge, call, tenancy.tenant.name)
        finally:
            call.detach(sink)
            calls.leave(call)

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
            headers=self._passed_headers(http.raw_headers),
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
