"""The HTTP side: the OpenAI API for agents, and what the daemon tells of itself."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from agentsched.daemon.calls import Calls, LiveCall
from agentsched.daemon.chat import Answer, Parsed, check_program, error_event, parse
from agentsched.daemon.errors import ApiError, bad_field, refused
from agentsched.daemon.host import Host
from agentsched.daemon.httplog import one_line
from agentsched.daemon.identity import Identities
from agentsched.daemon.intake import parse_events, take
from agentsched.daemon.metrics import Metrics
from agentsched.daemon.programs import Programs
from agentsched.engines.contract import RequestRefused
from agentsched.engines.frontend import Frontend, Prepared

_log = logging.getLogger(__name__)

PROGRAM_HEADER = "x-agentsched-program"
CALL_HEADER = "x-agentsched-call"
DEADLINE_HEADER = "x-agentsched-deadline-s"
_RETRY_HEADER = "x-stainless-retry-count"  # what the OpenAI clients say of a retry
_PING = b": waiting\n\n"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Routes and handlers. Owns one thread, in which prompts are tokenized in order of arrival."""

    def __init__(
        self,
        calls: Calls,
        host: Host,
        programs: Programs,
        identities: Identities,
        metrics: Metrics,
        frontend: Frontend,
        *,
        ping_s: float,
    ) -> None:
        self._calls = calls
        self._host = host
        self._programs = programs
        self._identities = identities
        self._metrics = metrics
        self._frontend = frontend
        self._ping_s = ping_s
        self._started_unix_s = int(time.time())
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="agentsched-tokenize")

    def application(self, *, body_limit_bytes: int) -> web.Application:
        """The aiohttp application, ready for a runner (with ``handler_cancellation``)."""
        app = web.Application(client_max_size=body_limit_bytes, middlewares=[_errors])
        app.add_routes(
            [
                web.get("/", self._root),  # aiohttp answers HEAD where it answers GET
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{model:.+}", self._model),
                web.get("/health", self._health),
                web.get("/metrics", self._show_metrics),
                web.post("/agentsched/events", self._events),
                web.get("/agentsched/programs", self._show_programs),
            ]
        )
        return app

    def close(self) -> None:
        """End the tokenizing thread."""
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    # Chat completions

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        parsed = parse(await _body(request))
        stated = request.headers.get(PROGRAM_HEADER, parsed.program)
        if stated is not None:
            check_program(stated, PROGRAM_HEADER)
        deadline_s = _deadline_s(request.headers.get(DEADLINE_HEADER))
        prepared = await self._prepare(parsed)
        retry = request.headers.get(_RETRY_HEADER, "0") != "0"
        call = self._calls.join(parsed, prepared, stated=stated, retry=retry, deadline_s=deadline_s)
        if call.attached > 1:
            self._metrics.retry_attached()
        try:
            answer = Answer(call.name, parsed.chat.model, int(time.time()))
            if parsed.stream:
                return await self._stream(request, call, parsed, answer)
            ending = await call.end()
            return _json(answer.whole(call.pieces, ending), headers=_names(call))
        finally:
            self._calls.leave(call)

    async def _prepare(self, parsed: Parsed) -> Prepared:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._tokenizing, self._frontend.prepare, parsed.chat)
        except RequestRefused as error:
            raise refused(error) from error

    async def _stream(
        self, request: web.Request, call: LiveCall, parsed: Parsed, answer: Answer
    ) -> web.StreamResponse:
        # What fails at once gets a proper status: headers wait for the first token, but never for a seat.
        if not call.held:
            await call.more(0, self._ping_s)
        if call.error is not None and not call.pieces:
            raise call.error
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **_names(call)}
        response = web.StreamResponse(headers=headers)
        try:
            await response.prepare(request)
            if not call.pieces and not call.ended:
                await response.write(_PING)
            await self._write(response, call, parsed, answer)
            await response.write_eof()
        except ConnectionResetError:
            _log.info("call %s: a client went away in mid-stream", call.name)
        return response

    async def _write(
        self, response: web.StreamResponse, call: LiveCall, parsed: Parsed, answer: Answer
    ) -> None:
        seen = tools = 0
        begun = False
        while True:
            if not await call.more(seen, self._ping_s):
                await response.write(_PING)
                continue
            data = [] if begun or (call.error and not call.pieces) else [answer.first()]
            begun = True
            for piece in call.pieces[seen:]:
                call.delivered = True
                data.append(answer.piece(piece, tools))
                tools += len(piece.tool_calls)
            seen = len(call.pieces)
            if call.error is not None:
                data.append(error_event(call.error))
            elif call.ending is not None:
                data.append(answer.last(call.ending, include_usage=parsed.include_usage))
            await response.write(b"".join(data))
            if call.ended and seen == len(call.pieces):
                return

    # Models

    async def _models(self, request: web.Request) -> web.Response:
        models = [self._model_body(name) for name in self._frontend.models()]
        return _json(msgspec.json.encode({"object": "list", "data": models}))

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name not in self._frontend.models():
            raise ApiError(404, f"model: {name!r} is not served", param="model", code="model_not_found")
        return _json(msgspec.json.encode(self._model_body(name)))

    def _model_body(self, name: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": self._started_unix_s, "owned_by": "agentsched"}

    # What the daemon tells, and what it is told

    async def _root(self, request: web.Request) -> web.Response:
        return web.Response(text="agentsched: the OpenAI API is at /v1\n")

    async def _health(self, request: web.Request) -> web.Response:
        """200 while an engine is attached."""
        engines = sorted(self._host.engines)
        body = {"status": "ok" if engines else "no engine", "engines": engines}
        return _json(msgspec.json.encode(body), status=200 if engines else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _events(self, request: web.Request) -> web.Response:
        events = parse_events(await _body(request), self._owner)
        ignored = take(events, self._calls, self._host)
        return _json(msgspec.json.encode({"accepted": len(events) - ignored, "ignored": ignored}))

    def _owner(self, tool_call: str) -> str | None:
        minted = self._identities.minted(tool_call)
        return minted.program if minted else None

    async def _show_programs(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        programs = [
            asdict(view) | {"state": view.state, "tools": sorted(view.tools), "now_s": now}
            for view in self._programs.open.values()
        ]
        return _json(msgspec.json.encode({"programs": programs}))


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.RequestPayloadError as error:
        raise ApiError(400, f"the body cannot be read: {one_line(error)}", code="invalid_body") from error


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every failure in the API's own format."""
    try:
        return await handler(request)
    except ApiError as error:
        failed = error
    except web.HTTPRequestEntityTooLarge as error:
        failed = ApiError(413, f"the body is too large: {error.text}", code="request_too_large")
    except web.HTTPException as error:
        if error.status < 400:
            raise
        failed = ApiError(error.status, f"{request.method} {request.path}: {error.reason}")
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        failed = ApiError(500, "internal error of the daemon; its log has more", kind="server_error")
    return _json(failed.body(), status=failed.status, headers=failed.headers())


def _deadline_s(stated: str | None) -> float | None:
    """Within how many seconds the program should end. Raises ``ApiError`` (400)."""
    if stated is None:
        return None
    try:
        deadline_s = float(stated)
    except ValueError:
        deadline_s = math.nan
    if not 0 < deadline_s < math.inf:
        problem = f"must be the seconds, above 0, within which the program should end; got {stated!r}"
        raise bad_field(DEADLINE_HEADER, problem)
    return deadline_s


def _names(call: LiveCall) -> dict[str, str]:
    return {PROGRAM_HEADER: call.program, CALL_HEADER: call.name}


def _json(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
