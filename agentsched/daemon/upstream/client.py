"""How one client is answered, by whatever server its connection belongs to.

``begin`` once, ``write`` as often as need be, and ``end``; or ``whole`` in place of all three. Writing waits
while the client reads too slowly. All of them raise ``ConnectionResetError`` once the client is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from agentsched.daemon.signals import Origin
from agentsched.daemon.upstream.bodies import PassedHeaders
from agentsched.engines.upstream.wire import Header


@dataclass(slots=True, eq=False)
class Head:
    """The head of a request for a call. ``path`` is that of its API; ``query`` is as it came, without the
    question mark; ``program`` is what its URL names it. ``named`` are the ``headers`` by name in lower case.

    Clients write the same head again and again, so what follows from it is kept here once it is known.
    """

    path: str
    query: str
    program: str | None
    headers: Sequence[Header]
    named: Mapping[str, str]
    origin: Origin = field(init=False)
    """What it says of whose the request is."""
    passed_on: tuple[bool, PassedHeaders] | None = None
    """Those of its headers that the server gets; first, whether clients' keys are the daemon's."""

    def __post_init__(self) -> None:
        self.origin = Origin(headers=self.named, path=self.program)


class Client(Protocol):
    """Who waits for an answer."""

    async def begin(self, status: int, headers: Sequence[Header], length: int | None = None) -> None:
        """The head of an answer whose body follows; ``length``: its bytes, if that is known."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...

    async def whole(self, status: int, headers: Sequence[Header], body: bytes) -> None: ...

    def break_off(self) -> None:
        """End the connection at once: what came so far is no answer."""
        ...


class AiohttpClient:
    """A client of aiohttp's server. ``response`` is what its handler has to return."""

    def __init__(self, http: web.Request) -> None:
        self._http = http
        self._response: web.StreamResponse | None = None

    @property
    def response(self) -> web.StreamResponse:
        assert self._response is not None, "nothing was answered"
        return self._response

    async def begin(self, status: int, headers: Sequence[Header], length: int | None = None) -> None:
        self._response = web.StreamResponse(status=status, headers=_readable(headers))
        if length is not None:
            self._response.content_length = length
        await self._response.prepare(self._http)

    async def write(self, data: bytes) -> None:
        await self.response.write(data)

    async def end(self) -> None:
        await self.response.write_eof()

    async def whole(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        self._response = web.Response(body=body, status=status, headers=_readable(headers))

    def break_off(self) -> None:
        if self._http.transport is not None:
            self._http.transport.abort()


def _readable(headers: Sequence[Header]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in headers]
