"""The least that a proxy on aiohttp does: what agentsched is held against.

``python -m agentsched.workloads.bench._plain_proxy PORT UPSTREAM [uvloop]``. It reads the request, sends it
on, and passes the answer on chunk by chunk; no decision, no look into anything.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

_OWN = frozenset({"host", "content-length", "connection", "transfer-encoding", "keep-alive"})


class Proxy:
    """Passes every request to one server."""

    def __init__(self, upstream: str, session: aiohttp.ClientSession) -> None:
        self._upstream = upstream
        self._session = session

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OWN}
        url = self._upstream + request.path_qs
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            passed = {name: value for name, value in answer.headers.items() if name.lower() not in _OWN}
            if answer.content_length is not None:
                return web.Response(body=await answer.read(), status=answer.status, headers=passed)
            response = web.StreamResponse(status=answer.status, headers=passed)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


async def _serve(port: int, upstream: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", Proxy(upstream, session).handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    run = uvloop.run if sys.argv[3:] == ["uvloop"] else asyncio.run
    run(_serve(int(sys.argv[1]), sys.argv[2]))
