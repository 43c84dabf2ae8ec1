"""In front of a real SGLang server: a daemon, or a daemon's end of the channel alone and calls by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import aiohttp

from agentsched.core.decisions import EngineOrder, Rank, Release, Retain, Segment, Worth
from agentsched.core.events import StepReport
from agentsched.daemon.settings import Settings
from agentsched.daemon.upstream.server import UpstreamDaemon
from agentsched.engines.sglang.place import socket_path
from agentsched.engines.upstream.engine import UpstreamSettings
from agentsched.engines.upstream.orders import OrdersLink
from agentsched.workloads.sglang_server import Limits, SglangServer
from tests.daemon.serving import Served, until

HEADER = "x-smg-routing-key"
POOL_TOKENS = Limits().kv_tokens


def prompt(tokens: int, seed: int) -> list[int]:
    """Contexts of one seed continue one another; those of two have nothing in common."""
    return [(7 * i * i + seed * 31 + i * seed) % 500 + 5 for i in range(tokens)]


@dataclass
class Pilot:
    """Orders by hand, and calls without a daemon."""

    server: SglangServer
    http: aiohttp.ClientSession
    reports: list[StepReport] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(time.monotonic_ns()))
    link: OrdersLink | None = None

    async def connect(self) -> None:
        # It does not come back by itself: a daemon that a test starts meanwhile has the channel from then on.
        self.link = OrdersLink(
            socket_path(self.server.port), "e", report=self._take, other_life=lambda: None, retry_s=3600.0
        )
        await self.link.open()

    def _take(self, report: StepReport) -> None:
        if report.snapshot:
            self.held.clear()
        self.reports.append(report)
        self.held |= {held.program: held.device_tokens for held in report.held}
        self.broken += report.broken_leases

    async def order(self, *orders: EngineOrder) -> None:
        """Returns when they are carried out: a new daemon is greeted after what came before it was read."""
        assert self.link is not None
        await self.link.send(list(orders))
        await self.look()

    async def look(self) -> StepReport:
        """A snapshot of now, by connecting anew."""
        if self.link is not None:
            await self.link.close()
        await self.connect()
        return self.reports[-1]

    async def call(self, program: str, tokens: int, *, seed: int, output: int = 4) -> int:
        """One call of so many tokens; how many of them were cached."""
        body = {
            "model": "tiny",
            "prompt": prompt(tokens, seed),
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
        }
        async with self.http.post(
            self.server.url + "/v1/completions", json=body, headers={HEADER: program}
        ) as answer:
            said = await answer.json()
            assert answer.status == 200, said
            return int((said["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    async def press(self, calls: int = 8, tokens: int = 700) -> None:
        """Fill the pool with contexts that nobody asked to keep."""
        for number in range(calls):
            await self.call(f"filler{number}", tokens, seed=100 + number)

    async def flush(self) -> None:
        """Forget all KV."""

        async def flushed() -> bool:
            async with self.http.post(self.server.url + "/flush_cache") as answer:
                return answer.status == 200

        await until(flushed, "the cache is flushed")

    async def post(self, path: str, body: Any) -> None:
        async with self.http.post(self.server.url + path, json=body) as answer:
            assert answer.status == 200, await answer.text()

    @asynccontextmanager
    async def slowly(self, forward_s: float) -> AsyncIterator[None]:
        """Each batch takes so many seconds longer."""
        await self.post("/slow_down", {"forward_sleep_time": forward_s})
        try:
            yield
        finally:
            await self.post("/slow_down", {"forward_sleep_time": None})

    async def sees(self, condition: Callable[[StepReport], bool], what: str) -> None:
        async def seen() -> bool:
            return condition(await self.look())

        await until(seen, what)

    def retain(self, program: str, *segments: tuple[int, int, float], ttl_s: float = 600.0) -> Retain:
        """Segments as start, end and value."""
        until_s = time.monotonic() + ttl_s
        kept = tuple(
            Segment(start_tokens=start, end_tokens=end, device=(Worth(until_s=until_s, value=value),))
            for start, end, value in segments
        )
        return Retain(**self._stamp(program), segments=kept, lease_until_s=until_s)

    def release(self, program: str) -> Release:
        return Release(**self._stamp(program))

    def rank(self, program: str, key: float) -> Rank:
        return Rank(**self._stamp(program), key=key)

    @cached_property
    def epoch(self) -> int:
        """As a daemon without a state chooses it: that of one in an earlier test is over."""
        return int(time.time())

    def _stamp(self, program: str) -> dict[str, Any]:
        return {
            "program": program,
            "engine": "e",
            "cause": 1,
            "epoch": self.epoch,
            "seq": next(self.numbers),
        }


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


async def first_token(answer: aiohttp.ClientResponse) -> None:
    """Signs of life may come before."""
    while not (await answer.content.readline()).startswith(b"data: {"):
        pass
