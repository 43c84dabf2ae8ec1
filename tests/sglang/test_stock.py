"""The daemon in front of a real SGLang server without our plugin: what the soft level does, seen from
outside."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agentsched.core.decisions import Rank
from agentsched.daemon.accounts import Declared
from agentsched.daemon.settings import Settings
from agentsched.daemon.upstream.server import UpstreamDaemon
from agentsched.engines.upstream.engine import UpstreamEngine, UpstreamSettings
from agentsched.workloads.sglang_server import SglangServer
from tests.daemon.keyed import ACME, BOLT, two_tenants
from tests.daemon.serving import Served, quiet_port, until
from tests.sglang.serving import prompt

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[SglangServer]:
    """It runs one call at a time, so that the order of those that wait can be seen."""
    folder = tmp_path_factory.mktemp("stock")
    for file in model.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    events = {"publisher": "zmq", "endpoint": f"tcp://*:{quiet_port()}", "topic": "kv"}
    flags = (
        "--enable-session-radix-cache --enable-priority-scheduling --disable-priority-preemption "
        "--default-priority-value 0 --max-running-requests 1"
    )
    server = SglangServer(folder, [*flags.split(), "--kv-events-config", json.dumps(events)])
    try:
        server.start()
        while not server.answers("/health"):  # it computes for that; the first time takes long
            time.sleep(0.1)
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def before(server: SglangServer, declared: Declared | None = None) -> AsyncIterator[Served]:
    """A daemon, and a program whose first gap has begun."""
    upstream = UpstreamSettings(url=server.url, poll_s=0.2)
    async with (
        UpstreamDaemon([upstream], Settings(port=0, drain_s=0.1), declared=declared) as daemon,
        aiohttp.ClientSession() as http,
    ):
        await until(lambda: daemon.engines, "the server is attached")
        served = Served(daemon, http, [])
        await flush(served, server)
        yield served


async def flush(served: Served, server: SglangServer) -> None:
    async def flushed() -> bool:
        async with served.http.post(server.url + "/flush_cache") as answer:
            return answer.status == 200

    await until(flushed, "the cache is flushed")


def body(tokens: int, seed: int, output: int = 4) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": prompt(tokens, seed),
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
    }


def cached(said: Any) -> int:
    return int((said["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def call(served: Served, program: str, tokens: int, *, seed: int, **headers: str) -> int:
    """By the daemon; how much of it was cached."""
    status, said, _ = await served.post(
        "/v1/completions", body(tokens, seed), x_agentsched_program=program, **headers
    )
    assert status == 200, said
    return cached(said)


async def aside(served: Served, server: SglangServer, tokens: int, *, seed: int) -> int:
    """Past the daemon."""
    async with served.http.post(server.url + "/v1/completions", json=body(tokens, seed)) as answer:
        assert answer.status == 200
        return cached(await answer.json())


async def press(served: Served, server: SglangServer) -> None:
    """More than the pool, of contexts that nobody pins."""
    for number in range(8):
        await aside(served, server, 700, seed=100 + number)


async def held(served: Served, program: str) -> int:
    return int((await served.programs()).get(program, {}).get("held_device_tokens", 0))


async def test_what_a_program_is_to_find_again_outlives_pressure_until_it_ends(stock: SglangServer) -> None:
    async with before(stock) as served:
        assert next(iter(served.daemon.engines.values())).capabilities.service.level == "soft"
        await call(served, "first", 20, seed=9)
        await aside(served, stock, 900, seed=2)
        await call(served, "p", 900, seed=1)

        async def known() -> bool:
            return await held(served, "p") >= 900

        await until(known, "the daemon knows what the server holds")
        await press(served, stock)
        pinned = await call(served, "p", 950, seed=1)
        unpinned = await aside(served, stock, 950, seed=2)
        print(f"of 950 tokens were cached: {pinned} in a session, {unpinned} without")
        assert pinned >= 899
        assert unpinned < 100
        assert await held(served, "p") >= 900
        status, _, _ = await served.ask("DELETE", "/agentsched/v1/programs/p")
        assert status == 204
        await until(lambda: "release_session p" in stock.log, "its session is closed")
        await press(served, stock)
        assert await aside(served, stock, 950, seed=1) < 100


async def test_what_is_free_and_what_is_evicted_is_known(stock: SglangServer) -> None:
    async with before(stock) as served:
        await call(served, "p", 900, seed=1)
        await press(served, stock)

        async def told() -> bool:
            evicted = await served.metric("agentsched_engine_tokens_total", kind="evicted")
            cache = await served.metric("agentsched_kv_tokens", kind="evictable")
            return bool(evicted and evicted > 1_000 and cache and cache > 1_000)

        await until(told, "evictions and cache are reported")


async def test_calls_that_wait_in_the_server_go_by_the_ranks_of_their_programs(stock: SglangServer) -> None:
    async with before(stock) as served:
        await call(served, "first", 20, seed=9)
        (engine,) = served.daemon.engines.values()
        assert isinstance(engine, UpstreamEngine)
        keys = {"last": 900.0, "middle": 500.0, "best": 2.0}
        for seq, (program, key) in enumerate(keys.items()):
            rank = Rank(program=program, engine=engine.name, key=key, cause=1, epoch=2**40, seq=seq)
            await engine.order([rank])
        ended: list[str] = []

        async def one(program: str, seed: int) -> None:
            await call(served, program, 60, seed=seed)
            ended.append(program)

        await slow(served, stock, 0.05)
        try:
            running = asyncio.create_task(one("running", 20))
            await until(partial(_sent, engine, 1), "one runs")
            waiting = []
            for seed, program in enumerate(keys, 21):
                waiting.append(asyncio.create_task(one(program, seed)))
                sent = 1 + len(waiting)
                await until(partial(_sent, engine, sent), "it was sent")
            await asyncio.gather(running, *waiting)
        finally:
            await slow(served, stock, None)
        print(f"sent in the order {list(keys)}, ended in the order {ended[1:]}")
        assert ended == ["running", "best", "middle", "last"]


async def slow(served: Served, server: SglangServer, forward_s: float | None) -> None:
    async with served.http.post(server.url + "/slow_down", json={"forward_sleep_time": forward_s}) as answer:
        assert answer.status == 200


async def test_tenants_find_nothing_of_each_other(stock: SglangServer) -> None:
    async with before(stock, two_tenants()) as served:
        await call(served, "a", 600, seed=5, x_api_key=ACME)
        assert await call(served, "b", 600, seed=5, x_api_key=BOLT) == 0
        assert await call(served, "c", 600, seed=5, x_api_key=ACME) >= 590


def _sent(engine: UpstreamEngine, calls: int) -> bool:
    """Whether so many calls are with the server."""
    return engine._evidence._running == calls
