"""The HTTP side: the APIs for agents, and the daemon's own endpoints beside them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from agentsched.daemon.access import TENANCY, Access
from agentsched.daemon.accounts import Accounts
from agentsched.daemon.apis import APIS, Api, ChatCompletions, Completions, Messages, Request
from agentsched.daemon.apis.reading import check_program, decode_object
from agentsched.daemon.calls import Calls
from agentsched.daemon.care import Change, PrefixCare, shared_tokens
from agentsched.daemon.delivery import Delivery
from agentsched.daemon.errors import ApiError, bad_field, refused
from agentsched.daemon.identity import Ask, call_digest
from agentsched.daemon.livecall import LiveCall
from agentsched.daemon.metrics import Metrics
from agentsched.daemon.operations import Operation, read_body, routes
from agentsched.daemon.programs import Programs
from agentsched.daemon.sharing import SharedPrefixes
from agentsched.daemon.signals import PROGRAM_HEADER, Origin
from agentsched.engines.contract import RequestRefused
from agentsched.engines.frontend import ChatRequest, Frontend, Prepared

_log = logging.getLogger(__name__)

PROGRAM_PATH = "/program/{program}"
"""Before any path of an API, it names the program: what a client can say that knows a base URL only."""

CALL_HEADER = "x-agentsched-call"
DEADLINE_HEADER = "x-agentsched-deadline-s"
RETRY_HEADER = "x-stainless-retry-count"  # what the clients of both vendors say of a retry
_ANTHROPIC_HEADER = "anthropic-version"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Routes and handlers. Owns one thread, in which prompts are tokenized in order of arrival."""

    def __init__(
        self,
        calls: Calls,
        programs: Programs,
        access: Access,
        sharing: SharedPrefixes,
        metrics: Metrics,
        frontend: Frontend,
        delivery: Delivery,
        care: PrefixCare,
        accounts: Accounts,
    ) -> None:
        self._calls = calls
        self._programs = programs
        self._access = access
        self._sharing = sharing
        self._metrics = metrics
        self._frontend = frontend
        self._delivery = delivery
        self._care = care
        self._accounts = accounts
        self._measuring: set[asyncio.Task[None]] = set()
        self._started_unix_s = int(time.time())
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="agentsched-tokenize")

    def application(
        self, operations: list[Operation], pages: Sequence[web.RouteDef], *, body_limit_bytes: int
    ) -> web.Application:
        """The aiohttp application, ready for a runner (with ``handler_cancellation``); ``operations`` are the
        daemon's own endpoints, ``pages`` are for people."""
        middlewares: list[Middleware] = [errors_told, self._admit]
        app = web.Application(client_max_size=body_limit_bytes, middlewares=middlewares)
        for base in ("", PROGRAM_PATH):
            app.add_routes(self._agents_routes(base))
        app.add_routes(routes(operations))
        app.add_routes(pages)
        return app

    @web.middleware
    async def _admit(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        self._access.admit(request)
        return await handler(request)

    def _agents_routes(self, base: str) -> list[web.RouteDef]:
        """The paths that are for agents; ``base`` is "", or what names a program."""
        return [
            *(web.post(base + api.path, partial(self._serve, api)) for api in APIS),
            web.get(base + "/", self._root),  # aiohttp answers HEAD where it answers GET
            web.post(base + "/v1/messages/count_tokens", self._count_tokens),
            web.get(base + "/v1/models", self._models),
            web.get(base + "/v1/models/{model:.+}", self._model),
            web.post(base + "/tokenize", self._tokenize),
        ]

    def close(self) -> None:
        """End the tokenizing thread."""
        for task in self._measuring:
            task.cancel()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    # Calls of agents

    async def _serve(self, api: Api, http: web.Request) -> web.StreamResponse:
        tenancy = http[TENANCY]
        tenancy.charge(time.monotonic())
        request = api.read(await read_body(http))
        chat, changes = self._care.tidy(request.chat, tenancy.spellings)
        for field, stated in (
            (PROGRAM_HEADER, http.headers.get(PROGRAM_HEADER)),
            ("program_id", request.raw.get("program_id")),
        ):
            if stated is not None:
                check_program(stated, field)
        deadline_s = stated_deadline_s(http.headers.get(DEADLINE_HEADER))
        prepared, shared = await self._prepare(chat, request.fields)
        ask = Ask(
            chat=chat,
            digest=call_digest(chat, request.stop),
            origin=_origin(http, request),
            retry=http.headers.get(RETRY_HEADER, "0") != "0",
        )
        call = self._calls.join(tenancy, ask, request, prepared, shared_tokens=shared, deadline_s=deadline_s)
        try:
            if call.clients > 1:
                tenancy.refund()
                self._metrics.retry_attached()
            else:
                self._metrics.identified(call.claim.known_by)
                self._measure(call, changes)
            tenant = self._programs.open[call.program].tenant
            writer = request.writer(call.name, int(time.time()))
            deliver = self._delivery.stream if request.stream else self._delivery.whole
            answer = await deliver(http, call, writer, call_names(call))
            self._charge(call, tenant)
            return answer
        finally:
            self._calls.leave(call)

    def _charge(self, call: LiveCall, tenant: str) -> None:
        """Its answer is on its way to a client."""
        if call.ending is not None and not call.charged:
            call.charged = True
            self._accounts.served(tenant, call.ending.usage)

    async def _prepare(self, chat: ChatRequest, fields: Sequence[str] = ()) -> tuple[Prepared, int]:
        """The request in tokens, and how many of these at the beginning are shared with all tenants."""

        def prepare() -> tuple[Prepared, int]:
            prepared = self._frontend.prepare(chat)
            return prepared, self._sharing.tokens(chat.model, prepared.prompt)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenizing, prepare)
        except RequestRefused as error:
            raise refused(error, fields) from error

    def _measure(self, call: LiveCall, changes: list[Change]) -> None:
        """Once the call is over, count what prefix care has gained."""
        for change in changes:
            if call.first or not change.once:
                task = asyncio.create_task(self._gained(call, change))
                self._measuring.add(task)
                task.add_done_callback(self._measuring.discard)

    async def _gained(self, call: LiveCall, change: Change) -> None:
        try:
            cached_tokens = (await call.end()).usage.cached_tokens
            without, _ = await self._prepare(change.without)
        except ApiError:
            return  # there is no answer to count, or none would be without the rule
        gained = cached_tokens - shared_tokens(without.prompt, call.prepared.prompt)
        self._metrics.cared(change.rule, max(0, gained))

    # Tokens and models

    async def _prepare_tidy(self, http: web.Request, request: Request) -> Prepared:
        chat, _ = self._care.tidy(request.chat, http[TENANCY].spellings)
        prepared, _ = await self._prepare(chat, request.fields)
        return prepared

    async def _count_tokens(self, http: web.Request) -> web.Response:
        """What a prompt in the form of the Anthropic API would take."""
        http[TENANCY].charge(time.monotonic())
        prepared = await self._prepare_tidy(http, Messages().read(await read_body(http), counting=True))
        return _json(msgspec.json.encode({"input_tokens": len(prepared.prompt)}))

    async def _tokenize(self, http: web.Request) -> web.Response:
        """The tokens of a prompt as ``/v1/completions`` or ``/v1/chat/completions`` would take it."""
        http[TENANCY].charge(time.monotonic())
        body = {"model": self._frontend.models()[0]} | decode_object(await read_body(http))
        api = Completions() if "prompt" in body else ChatCompletions()
        prepared = await self._prepare_tidy(http, api.read(msgspec.json.encode(body)))
        told = {
            "count": len(prepared.prompt),
            "max_model_len": self._calls.room_tokens,
            "tokens": prepared.prompt,
        }
        return _json(msgspec.json.encode(told))

    async def _models(self, http: web.Request) -> web.Response:
        names = self._frontend.models()
        models = [self._model_body(http, name) for name in names]
        if _ANTHROPIC_HEADER in http.headers:
            page = {"data": models, "has_more": False, "first_id": names[0], "last_id": names[-1]}
            return _json(msgspec.json.encode(page))
        return _json(msgspec.json.encode({"object": "list", "data": models}))

    async def _model(self, http: web.Request) -> web.Response:
        name = http.match_info["model"]
        if name not in self._frontend.models():
            raise ApiError(404, f"model: {name!r} is not served", param="model", code="model_not_found")
        return _json(msgspec.json.encode(self._model_body(http, name)))

    def _model_body(self, http: web.Request, name: str) -> dict[str, str | int]:
        if _ANTHROPIC_HEADER in http.headers:
            created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started_unix_s))
            return {"type": "model", "id": name, "display_name": name, "created_at": created}
        return {"id": name, "object": "model", "created": self._started_unix_s, "owned_by": "agentsched"}

    async def _root(self, http: web.Request) -> web.Response:
        return web.Response(
            text="agentsched: the OpenAI APIs are at /v1, the Anthropic API at /v1/messages\n"
        )


def _origin(http: web.Request, request: Request) -> Origin:
    headers = {name.lower(): value for name, value in http.headers.items()}
    return Origin(headers=headers, body=request.raw, path=http.match_info.get("program"))


@web.middleware
async def errors_told(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every failure in the format of the API that the client speaks."""
    allowed: str | None = None
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
        allowed = error.headers.get("Allow")
    except Exception as error:
        failed = as_failure(error, f"{request.method} {request.path}")
    headers = failed.headers() | ({} if allowed is None else {"Allow": allowed})
    return _json(failure_body(failed, request.path, request.headers), status=failed.status, headers=headers)


def as_failure(error: Exception, request: str) -> ApiError:
    """What a client is told of it. A fault of the daemon's own goes to the log, with what was asked."""
    if isinstance(error, ApiError):
        return error
    _log.error("%s failed", request, exc_info=error)
    return ApiError(500, "internal error of the daemon; its log has more", kind="server_error")


def failure_body(failed: ApiError, path: str, headers: Mapping[str, str]) -> bytes:
    """In the format of the API that the client speaks."""
    anthropic = Messages.path in path or _ANTHROPIC_HEADER in headers
    api: Api = Messages() if anthropic else ChatCompletions()
    return api.error(failed)


def stated_deadline_s(stated: str | None) -> float | None:
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


def call_names(call: LiveCall) -> dict[str, str]:
    """Headers of an answer that name its program and its call."""
    return {PROGRAM_HEADER: call.stated_program, CALL_HEADER: call.name}


def _json(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
