"""The daemon in front of a real vLLM server: what it is told of calls, and what is learned from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import pytest

from agentsched.core.decisions import Rank
from agentsched.daemon.accounts import Declared
from agentsched.daemon.settings import Settings
from agentsched.daemon.upstream.server import UpstreamDaemon
from agentsched.engines.upstream.engine import UpstreamEngine, UpstreamSettings
from tests.daemon.keyed import ACME, BOLT, two_tenants
from tests.daemon.serving import Served, until
from tests.sglang.serving import prompt
from tests.vllm.serving import POOL_TOKENS, VllmServer

pytest.importorskip("zmq", reason="KV events need pyzmq: pip install 'agentsched[kv-events]'")
pytestmark = pytest.mark.timeout(300)


@asynccontextmanager
async def before(server: VllmServer, declared: Declared | None = None) -> AsyncIterator[Served]:
    upstream = UpstreamSettings(url=server.said, poll_s=0.2)
    async with (
        UpstreamDaemon([upstream], Settings(port=0, drain_s=0.1), declared=declared) as daemon,
        aiohttp.ClientSession() as http,
    ):
        await until(lambda: daemon.engines, "the server is attached")
        yield Served(daemon, http, [])


def engine_of(served: Served) -> UpstreamEngine:
    (engine,) = served.daemon.engines.values()
    assert isinstance(engine, UpstreamEngine)
    return engine


async def call(
    served: Served, program: str, tokens: int, *, seed: int, output: int = 4, **headers: str
) -> int:
    """How much of it was cached."""
    body = {
        "model": "tiny",
        "prompt": prompt(tokens, seed),
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
    }
    status, said, _ = await served.post("/v1/completions", body, x_agentsched_program=program, **headers)
    assert status == 200, said
    return int((said["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def held(served: Served, program: str) -> int:
    return int((await served.programs()).get(program, {}).get("held_device_tokens", 0))


async def holds(served: Served, program: str, least: int, most: int) -> None:
    async def known() -> bool:
        return least <= await held(served, program) <= most

    await until(known, f"{least} to {most} tokens are known to be held for {program}")


async def test_what_it_tells_and_what_is_said_of_it_make_its_service(server: VllmServer) -> None:
    async with before(server) as served:
        can = engine_of(served).capabilities
        assert (can.kind, can.capacity_tokens, can.block_tokens) == ("vllm", POOL_TOKENS, 32)
        assert (can.service.level, can.ranks, can.retention) == ("order", True, False)
        assert "what is held, by KV events" in can.service.does
        assert "order by priority" in can.service.does


async def test_what_is_held_for_a_program_is_known_until_it_is_evicted(server: VllmServer) -> None:
    async with before(server) as served:
        assert await call(served, "p", 900, seed=1) == 0
        await holds(served, "p", 896, 904)
        assert await call(served, "p", 1_000, seed=1) >= 864
        await holds(served, "p", 992, 1_004)
        for number in range(8):
            await call(served, f"filler{number}", 700, seed=100 + number)
        await holds(served, "p", 0, 100)
        assert await call(served, "p", 1_100, seed=1) < 100
        assert await served.metric("agentsched_tokens_total", kind="recomputed") > 800
        assert await served.metric("agentsched_engine_tokens_total", kind="evicted") > 800


async def test_a_daemon_that_comes_later_knows_what_is_held(server: VllmServer) -> None:
    """vLLM repeats its events."""
    async with before(server) as served:
        await call(served, "q", 600, seed=3)
        await holds(served, "q", 576, 604)
    async with before(server) as served:
        assert engine_of(served)._feed is not None
        ledger = engine_of(served)._feed.ledger  # type: ignore[union-attr]
        assert 576 <= ledger.held("q") <= 604


async def test_what_calls_have_and_what_is_cache_is_reported(server: VllmServer) -> None:
    async with before(server) as served:
        await call(served, "p", 900, seed=7)

        async def told() -> bool:
            free = await served.metric("agentsched_kv_tokens", kind="free")
            cache = await served.metric("agentsched_kv_tokens", kind="evictable")
            return bool(cache and cache > 500 and free + cache == POOL_TOKENS)

        await until(told, "what is free and what is cache is known")


async def test_calls_that_wait_in_the_server_go_by_the_ranks_of_their_programs(server: VllmServer) -> None:
    async with before(server) as served:
        engine = engine_of(served)
        keys = {"last": 900.0, "middle": 500.0, "best": 2.0}
        for seq, (program, key) in enumerate(keys.items()):
            rank = Rank(program=program, engine=engine.name, key=key, cause=1, epoch=2**40, seq=seq)
            await engine.order([rank])
        ended: list[str] = []

        async def one(program: str, seed: int, output: int) -> None:
            await call(served, program, 60, seed=seed, output=output)
            ended.append(program)

        running = asyncio.create_task(one("running", 20, 2_500))
        await until(partial(_sent, engine, 1), "one runs")
        waiting = []
        for seed, program in enumerate(keys, 21):
            waiting.append(asyncio.create_task(one(program, seed, 4)))
            sent = 1 + len(waiting)
            await until(partial(_sent, engine, sent), "it was sent")
        await asyncio.gather(running, *waiting)
        print(f"sent in the order {list(keys)}, ended in the order {ended[1:]}")
        assert ended == ["running", "best", "middle", "last"]


async def test_tenants_find_nothing_of_each_other(server: VllmServer) -> None:
    async with before(server, two_tenants()) as served:
        await call(served, "a", 600, seed=5, x_api_key=ACME)
        assert await call(served, "b", 600, seed=5, x_api_key=BOLT) == 0
        assert await call(served, "c", 600, seed=5, x_api_key=ACME) >= 576
        messages: dict[str, Any] = {
            "model": "tiny",
            "max_tokens": 4,
            "messages": [{"role": "user", "content": "hello " * 80}],
        }
        reads = []
        for key in (ACME, BOLT, ACME):
            status, said, _ = await served.post("/v1/messages", messages, x_api_key=key)
            assert status == 200, said
            reads.append(said["usage"]["cache_read_input_tokens"])
        assert reads[:2] == [0, 0]
        assert reads[2] > 0


def _sent(engine: UpstreamEngine, calls: int) -> bool:
    """Whether so many calls are with the server."""
    return engine._evidence._running == calls
