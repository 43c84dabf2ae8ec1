"""The daemon in front of a real SGLang server with the plugin: what agents see of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from agentsched.daemon.settings import Settings
from agentsched.daemon.upstream.server import UpstreamDaemon
from agentsched.engines.upstream.engine import UpstreamSettings
from agentsched.workloads.sglang_server import SglangServer
from tests.daemon.serving import Served, until
from tests.sglang.serving import Pilot, prompt

pytestmark = pytest.mark.timeout(300)


@asynccontextmanager
async def before(server: SglangServer, **settings: Any) -> AsyncIterator[Served]:
    chosen = Settings(**({"port": 0, "drain_s": 0.1} | settings))
    upstream = UpstreamSettings(url=server.url, poll_s=0.2)
    async with UpstreamDaemon([upstream], chosen) as daemon, aiohttp.ClientSession() as http:
        await until(lambda: daemon.engines, "the server is attached")
        yield Served(daemon, http, [])


def body(tokens: int, *, seed: int = 1, output: int = 4, **fields: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": prompt(tokens, seed),
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
    } | fields


async def call(served: Served, program: str, tokens: int, *, seed: int = 1) -> int:
    """How much of it was cached."""
    status, said, _ = await served.post(
        "/v1/completions", body(tokens, seed=seed), x_agentsched_program=program
    )
    assert status == 200, said
    return int((said["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def held(served: Served, program: str) -> int:
    return int((await served.programs()).get(program, {}).get("held_device_tokens", 0))


async def test_a_programs_kv_is_retained_through_its_gap(server: SglangServer, pilot: Pilot) -> None:
    """Beside calls that come to the server by another way."""
    async with before(server) as served:
        assert next(iter(served.daemon.engines.values())).capabilities.retention
        await call(served, "p", 900)

        async def known() -> bool:
            return await held(served, "p") == 903

        await until(known, "the daemon knows what the server holds")
        for number in range(8):
            body_of = body(700, seed=100 + number)
            async with served.http.post(server.url + "/v1/completions", json=body_of) as answer:
                assert answer.status == 200
        assert await call(served, "p", 1_000) >= 899
        assert await served.metric("agentsched_engine_tokens_total", kind="prefilled") > 0


async def test_chats_and_messages_are_their_programs(server: SglangServer, pilot: Pilot) -> None:
    async with before(server) as served:
        said = {"model": "tiny", "messages": [{"role": "user", "content": "hello " * 40}], "max_tokens": 4}
        for path, program in (("/v1/chat/completions", "chat"), ("/v1/messages", "messages")):
            status, answer, _ = await served.post(path, said, x_agentsched_program=program)
            assert status == 200, answer

            async def known(program: str = program) -> bool:
                return await held(served, program) > 0

            await until(known, f"KV of {program} is held for it")


async def test_a_stream_comes_token_by_token(server: SglangServer, pilot: Pilot) -> None:
    async with before(server) as served, pilot.slowly(0.05):
        events, seen_s = 0, []
        async with served.http.post(
            served.url + "/v1/completions", json=body(200, output=8, stream=True)
        ) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    assert json.loads(line[6:])["object"] == "text_completion"
                    events += 1
                    seen_s.append(asyncio.get_running_loop().time())
        assert events >= 8
        assert seen_s[-1] - seen_s[0] > 0.2


async def test_who_goes_away_is_computed_for_no_more_and_what_was_computed_is_kept(
    server: SglangServer, pilot: Pilot
) -> None:
    async with before(server) as served, pilot.slowly(0.05):
        headers = {"x-agentsched-program": "p"}
        async with served.http.post(
            served.url + "/v1/completions", json=body(600, output=400, stream=True), headers=headers
        ) as answer:
            await first_token(answer)

        async def idle() -> bool:
            async with served.http.get(server.url + "/metrics") as metrics:
                lines = (await metrics.text()).splitlines()
            running = [line for line in lines if line.startswith("sglang:num_running_reqs{")]
            return bool(running) and all(line.endswith(" 0.0") for line in running)

        await until(idle, "the server computes for nobody")

        async def kept() -> bool:
            return await held(served, "p") >= 600

        await until(kept, "what was computed is held")


async def test_a_killed_server_is_noticed_and_programs_go_on_when_it_is_back(
    model: Any, sockets: None
) -> None:
    server = SglangServer(model)
    try:
        server.start()
        async with before(server) as served:
            await call(served, "p", 900)
            first = next(iter(served.daemon.engines.values()))
            async with served.http.post(server.url + "/slow_down", json={"forward_sleep_time": 0.05}):
                pass
            streaming = body(300, seed=2, output=500, stream=True)
            async with served.http.post(served.url + "/v1/completions", json=streaming) as answer:
                await first_token(answer)
                server.kill()
                with pytest.raises(aiohttp.ClientPayloadError):
                    await broken(answer)
            await until(lambda: not served.daemon.engines, "it is noticed")
            waiting = asyncio.create_task(call(served, "p", 1_000))
            await asyncio.to_thread(server.start)
            assert await waiting == 0
            second = next(iter(served.daemon.engines.values()))
            assert second is not first
            assert second.capabilities.retention

            async def retained() -> bool:
                return await held(served, "p") == 1_003

            await until(retained, "the new process holds it")
            assert await call(served, "p", 1_100) >= 999
    finally:
        server.kill()


async def first_token(answer: aiohttp.ClientResponse) -> None:
    """Signs of life may come before."""
    while not (await answer.content.readline()).startswith(b"data: {"):
        pass


async def broken(answer: aiohttp.ClientResponse) -> None:
    """Read to the end; raises if it was broken off, in whichever way."""
    data = await answer.content.read()
    if b"engine_cut_off" in data:
        raise aiohttp.ClientPayloadError("an error event")
