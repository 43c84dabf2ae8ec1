"""The daemon in front of a real SGLang server with the plugin: what agents see of it."""

from __future__ import annotations

import asyncio
import json

import pytest

from agentsched.workloads.sglang_server import SglangServer
from tests.daemon.serving import until
from tests.sglang.serving import Pilot, before, body, call, first_token, held

pytestmark = pytest.mark.timeout(300)


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
        assert events > 4, "a token that ends within a character is told with the next one"
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
