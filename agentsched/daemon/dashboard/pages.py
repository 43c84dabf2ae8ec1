"""The dashboard over HTTP: the page's files, what they show, and what changes as server-sent events."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import cache
from importlib import resources
from typing import NamedTuple

import msgspec
from aiohttp import web

from agentsched.daemon.access import DASHBOARD_PATH, VIEW_PATH, VIEWER, Viewer
from agentsched.daemon.dashboard.live import Live, Scope
from agentsched.daemon.dashboard.model import brief
from agentsched.daemon.dashboard.recorded import Recording
from agentsched.daemon.errors import ApiError, bad_field

PING_S = 10.0
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_INDEX = "index.html"


class _File(NamedTuple):
    body: bytes
    media_type: str
    tag: str


@cache
def files() -> dict[str, _File]:
    """The built page, by name."""
    found = {}
    for entry in resources.files("agentsched.daemon.dashboard").joinpath("static").iterdir():
        media_type = _TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            body = entry.read_bytes()
            found[entry.name] = _File(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return found


class Pages:
    """The handlers. ``recording`` is the event log, if one is written."""

    def __init__(self, live: Live, recording: Recording | None) -> None:
        self._live = live
        self._recording = recording

    def routes(self) -> list[web.RouteDef]:
        """For aiohttp, in an application that lets ``Access`` admit."""
        return [
            web.get(DASHBOARD_PATH, self._file),
            web.get(DASHBOARD_PATH + "/{file}", self._file),
            web.get(VIEW_PATH, self._view),
            web.get(VIEW_PATH + "/stream", self._stream),
            web.get(VIEW_PATH + "/recorded", self._recorded),
        ]

    async def _file(self, http: web.Request) -> web.Response:
        found = files().get(http.match_info.get("file", _INDEX))
        if found is None:
            raise ApiError(404, f"GET {http.path}: the dashboard has no such file")
        headers = {
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
            "ETag": found.tag,
        }
        if found.tag in http.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        answer = web.Response(
            body=found.body, content_type=found.media_type, charset="utf-8", headers=headers
        )
        answer.enable_compression()
        return answer

    async def _view(self, http: web.Request) -> web.Response:
        """Everything, or with ``brief=1`` only what is now."""
        view = await self._live.view(_scope(http))
        if http.query.get("brief") == "1":
            view = brief(view)
        return _json(msgspec.json.encode(view))

    async def _stream(self, http: web.Request) -> web.StreamResponse:
        def cut() -> None:
            if http.transport is not None:
                http.transport.abort()

        client = await self._live.join(_scope(http), http.headers.get("Last-Event-ID", ""), cut)
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        try:
            await response.prepare(http)
            while (message := await _or_ping(client.next)) is not None:
                await response.write(message)
        except ConnectionResetError:
            pass  # it went away, or was cut off
        finally:
            self._live.leave(client)
        return response

    async def _recorded(self, http: web.Request) -> web.Response:
        """What the event log has of ``from_s`` to ``to_s``, seconds of the daemon's clock."""
        if self._recording is None:
            raise ApiError(
                404, "no event log is written: start the daemon with --log FILE", code="no_event_log"
            )
        from_s, to_s = _number(http, "from_s"), _number(http, "to_s")
        tenancy = http[VIEWER].tenancy
        tenant = None if tenancy is None else (tenancy.tenant.name, tenancy.inside(""))
        return _json(await self._recording.read(from_s, to_s, tenant))


async def _or_ping(next_message: Callable[[float], Awaitable[bytes | None]]) -> bytes | None:
    try:
        return await next_message(PING_S)
    except TimeoutError:
        return b": still there\n\n"


def _scope(http: web.Request) -> Scope:
    viewer: Viewer = http[VIEWER]
    if viewer.tenancy is None:
        return Scope(None, str)
    return Scope(viewer.tenancy.tenant.name, viewer.tenancy.outside)


def _number(http: web.Request, name: str) -> float:
    try:
        return float(http.query[name])
    except (KeyError, ValueError):
        raise bad_field(name, "must be given, in seconds of the daemon's clock") from None


def _json(body: bytes) -> web.Response:
    answer = web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
    answer.enable_compression()
    return answer
