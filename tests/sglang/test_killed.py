"""An SGLang server that is killed while it answers, and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from agentsched.workloads.sglang_server import SglangServer
from tests.daemon.serving import Served, until
from tests.sglang.serving import before, body, call, first_token, held

pytestmark = pytest.mark.timeout(400)

PROGRAMS = 3
PROMPT_TOKENS, OUTPUT_TOKENS = 150, 600
"""All programs have room at once, and would answer for half a minute."""


@asynccontextmanager
async def slow_server(model: Path) -> AsyncIterator[SglangServer]:
    """One of this test's own, whose batches take 50 ms longer until it is killed."""
    server = SglangServer(model)
    try:
        server.start()
        slower = {"forward_sleep_time": 0.05}
        async with (
            aiohttp.ClientSession() as http,
            http.post(server.url + "/slow_down", json=slower) as answer,
        ):
            assert answer.status == 200
        yield server
    finally:
        server.kill()


async def streamed(served: Served, program: str, seed: int, begun: asyncio.Semaphore) -> str:
    """How the stream of a long answer ends; ``begun`` when it has begun."""
    headers = {"x-agentsched-program": program}
    asked = body(PROMPT_TOKENS, seed=seed, output=OUTPUT_TOKENS, stream=True)
    async with served.http.post(served.url + "/v1/completions", json=asked, headers=headers) as answer:
        assert answer.status == 200
        await first_token(answer)
        begun.release()
        try:
            rest = await answer.content.read()
        except aiohttp.ClientPayloadError:
            return "broken off"
        return "error event" if b"engine_cut_off" in rest else "answer"


async def whole(served: Served, program: str, seed: int) -> str:
    """How an answer that is not streamed ends."""
    headers = {"x-agentsched-program": program}
    asked = body(PROMPT_TOKENS, seed=seed, output=OUTPUT_TOKENS)
    async with served.http.post(served.url + "/v1/completions", json=asked, headers=headers) as answer:
        if answer.status == 200:
            return "answer"
        assert answer.status in (502, 503)
        assert int(answer.headers["Retry-After"]) > 0
        return "retry"


async def test_every_client_hears_of_it_and_programs_go_on_later(model: Path, sockets: None) -> None:
    async with slow_server(model) as server, before(server) as served:
        await call(served, "p0", 100, seed=50)
        first = next(iter(served.daemon.engines.values()))
        begun = asyncio.Semaphore(0)
        streams = [
            asyncio.create_task(streamed(served, f"p{number}", 50 + number, begun))
            for number in range(PROGRAMS)
        ]
        for _ in streams:
            await begun.acquire()
        silent = asyncio.create_task(whole(served, "silent", 70))

        async def computed() -> bool:
            return (await served.programs()).get("silent", {}).get("state") == "running"

        await until(computed, "the call that is not streamed is on its way")
        server.kill()
        assert set(await asyncio.gather(*streams)) <= {"broken off", "error event"}
        assert await silent == "retry"
        await until(lambda: not served.daemon.engines, "it is noticed")

        again = [
            asyncio.create_task(call(served, f"p{number}", 350, seed=50 + number))
            for number in range(PROGRAMS)
        ]
        await asyncio.to_thread(server.start)
        assert await asyncio.gather(*again) == [0] * PROGRAMS
        second = next(iter(served.daemon.engines.values()))
        assert second is not first
        assert second.capabilities.retention

        async def retained() -> bool:
            return await held(served, "p1") == 353

        await until(retained, "the new process holds it")
        assert await call(served, "p1", 400, seed=51) >= 349
