"""The daemon's own endpoints: what each takes and answers, once for serving and for the OpenAPI document.

An ``Operation`` names its types; ``route`` makes of it what aiohttp calls, and ``openapi.py`` what others
read. Bodies and queries are checked against the types before anything runs, and unknown fields are
refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web

from agentsched.daemon.access import TENANCY
from agentsched.daemon.apis.reading import WHOLE_FLOATS_ARE_INTEGERS, convert, decode_object
from agentsched.daemon.errors import ApiError, bad_field
from agentsched.daemon.httplog import one_line
from agentsched.daemon.tenancy import Tenancy

Realm = Literal["open", "tenant", "admin"]
"""Whose key an operation needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A checked request. ``tenancy`` is whose it is, for operations of tenants."""

    body: Any = None
    query: Any = None
    path: Mapping[str, str] = field(default_factory=dict)
    _tenancy: Tenancy | None = None

    @property
    def tenancy(self) -> Tenancy:
        assert self._tenancy is not None, "only operations of tenants have one"
        return self._tenancy


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation answers. ``body`` is a value of its type, or text where that is ``str``."""

    body: Any = None
    status: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One endpoint. ``answers`` gives the type of the body by status, None for none; ``refusals`` the further
    statuses of errors. ``parse`` reads a body of type ``body`` where a message is owed that tells more."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    summary: str
    realm: Realm
    run: Callable[[Asked], Answer]
    answers: Mapping[int, Any]
    body: Any = None
    query: Any = None
    refusals: tuple[int, ...] = ()
    parse: Callable[[bytes], Any] | None = None
    media_type: str = "application/json"


def routes(operations: list[Operation]) -> list[web.RouteDef]:
    """For aiohttp. A program's name may hold slashes, so it takes all of the path that is left."""
    return [web.route(o.method, o.path.replace("{program}", "{program:.+}"), _handler(o)) for o in operations]


async def read_body(http: web.Request) -> bytes:
    """Raises ``ApiError`` (400) if it cannot be read to its end."""
    try:
        return await http.read()
    except web.RequestPayloadError as error:
        raise ApiError(400, f"the body cannot be read: {one_line(error)}", code="invalid_body") from error


def _handler(operation: Operation) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(http: web.Request) -> web.Response:
        asked = Asked(
            body=await _body(operation, http),
            query=_query(operation, http),
            path=http.match_info,
            _tenancy=http.get(TENANCY),
        )
        answer = operation.run(asked)
        if answer.body is None:
            return web.Response(status=answer.status)
        if isinstance(answer.body, bytes):
            return web.Response(
                body=answer.body, status=answer.status, headers={"Content-Type": operation.media_type}
            )
        body = msgspec.json.encode(answer.body)
        return web.Response(body=body, status=answer.status, content_type="application/json")

    return handle


async def _body(operation: Operation, http: web.Request) -> Any:
    if operation.body is None:
        return None
    data = await read_body(http)
    if operation.parse is not None:
        return operation.parse(data)
    return convert(decode_object(data or b"{}", WHOLE_FLOATS_ARE_INTEGERS), operation.body)


def _query(operation: Operation, http: web.Request) -> Any:
    said: dict[str, str] = {}
    for name, value in http.query.items():
        if name in said:
            raise bad_field(name, "is given twice")
        said[name] = value
    if operation.query is None:
        if said:
            raise bad_field(next(iter(said)), "is not known: this endpoint takes no parameters")
        return None
    return convert(said, operation.query, strict=False)
