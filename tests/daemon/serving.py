"""A real daemon on a real socket for tests, with the simulated engine inside its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from agentsched.daemon.accounts import Declared
from agentsched.daemon.server import Daemon
from agentsched.daemon.settings import Settings
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.byte_frontend import VOCABULARY, ByteFrontend, Mind
from agentsched.engines.contract import Engine
from agentsched.engines.cost import CostProfile
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.simulated import simulated

DEADLINE_S = 20.0
FAST = CostProfile(step_s=0.0, prefill_token_s=0.0, decode_row_s=0.0, attention_s=0.0)
SLOW = CostProfile(step_s=0.01, prefill_token_s=0.0, decode_row_s=0.0, attention_s=0.0)
"""10 ms a token: an answer of some hundred tokens is still going on when a test looks."""


@dataclass
class Served:
    """A running daemon, and how to speak to it. ``steps`` are the engines made so far."""

    daemon: Daemon
    http: aiohttp.ClientSession
    steps: list[BatchingEngine]

    @property
    def url(self) -> str:
        return self.daemon.url

    def openai(self, program: str | None = None, *, retries: int = 0) -> AsyncOpenAI:
        headers = {"x-agentsched-program": program} if program else {}
        return AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=retries, default_headers=headers
        )

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
        """Status, JSON body and headers of an answer."""
        return await self.ask("POST", path, body, **headers)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """The same for any method; an answer without a body is None."""
        names = _header_names(headers)
        async with self.http.request(method, self.url + path, json=body, headers=names) as answer:
            data = await answer.read()
            return answer.status, json.loads(data) if data else None, answer.headers

    async def chat(self, content: str, **fields: Any) -> tuple[int, Any, Any]:
        stated = {"x_agentsched_program": fields.pop("program", None), "x_api_key": fields.pop("key", None)}
        headers = {name: value for name, value in stated.items() if value}
        return await self.post("/v1/chat/completions", chat(content, **fields), **headers)

    async def programs(self, key: str = "") -> dict[str, dict[str, Any]]:
        headers = {"x_api_key": key} if key else {}
        _, body, _ = await self.ask("GET", "/agentsched/v1/programs", **headers)
        return {program["program"]: program for program in body["programs"]}

    async def metric(self, name: str, *, key: str = "", **labels: str) -> float:
        """One sample of /metrics; 0 if it is not there."""
        headers = {"x-api-key": key} if key else {}
        async with self.http.get(self.url + "/metrics", headers=headers) as answer:
            text = await answer.text()
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return next((s.value for s in samples if s.name == name and labels.items() <= s.labels.items()), 0.0)


def chat(content: str, **fields: Any) -> dict[str, Any]:
    """The body of a first call."""
    return {"model": "simulated", "messages": [{"role": "user", "content": content}]} | fields


def _header_names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@asynccontextmanager
async def served(
    profile: CostProfile = FAST,
    kv_tokens: int = 65_536,
    make_engine: Callable[[], Engine] | None = None,
    mind: Mind | None = None,
    declared: Declared | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """A daemon for one test."""
    steps: list[BatchingEngine] = []

    def make() -> Engine:
        steps.append(simulated(profile, kv_tokens, vocabulary=VOCABULARY))
        return InProcessEngine(steps[-1], name="simulated", virtual_time=profile is FAST)

    chosen = Settings(**({"port": 0, "drain_s": 0.1} | settings))
    async with (
        Daemon(make_engine or make, ByteFrontend(kv_tokens, mind), chosen, declared=declared) as daemon,
        aiohttp.ClientSession() as http,
    ):
        yield Served(daemon, http, steps)
    for engine in steps:
        engine.check_invariants()


async def until(condition: Callable[[], Any], what: str) -> None:
    """Poll until the condition holds; it may be a coroutine function."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            await asyncio.sleep(0.01)
    raise AssertionError(what)


def quiet_port() -> int:
    """A free port that the kernel gives to nobody by itself: it is free still when a server that takes long
    to start comes to it."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
