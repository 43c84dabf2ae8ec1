"""In front of an SGLang with our plugin: what it is ordered, whose it is told requests are, and what happens
without a channel. The server is a double of its HTTP side; the plugin's end of the channel is real."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentsched.core.decisions import EngineTerms, Retain
from agentsched.core.events import Held, StepReport
from agentsched.engines.sglang.place import socket_path
from tests.daemon.serving import until
from tests.daemon.upstreams import Double, Got, finished, in_front_of, plainly
from tests.engines.test_sglang_channel import Server

PORT = 30999


def server_info(double: Double, *, backend: str | None = "agentsched") -> None:
    double.others["/get_server_info"] = {
        "max_total_num_tokens": 100_000,
        "page_size": 1,
        "port": PORT,
        "radix_cache_backend": backend,
    }


@asynccontextmanager
async def plugin(life: str = "one") -> AsyncIterator[Server]:
    server = Server(socket_path(PORT), life=life)
    task = asyncio.create_task(server.serve())
    await until(server.path.exists, "the plugin listens")
    try:
        yield server
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTSCHED_SGLANG_SOCKETS", str(tmp_path / "sockets"))


async def test_a_programs_kv_is_retained_and_its_requests_say_whose_they_are() -> None:
    double = Double(plainly)
    server_info(double)
    async with plugin() as server, in_front_of(double) as served:
        assert next(iter(served.daemon.engines.values())).capabilities.retention
        await served.chat("hi", program="my program")
        await finished(served, 1)
        assert double.requests[0].headers["x-smg-routing-key"] == "my%20program"
        await until(lambda: any(isinstance(o, Retain) for o in server.orders), "its KV is retained")
        assert {order.program for order in server.orders if isinstance(order, Retain)} == {"my program"}
        assert any(isinstance(order, EngineTerms) for order in server.orders)


async def test_what_the_plugin_reports_is_what_is_held() -> None:
    double = Double(plainly)
    server_info(double)
    async with plugin() as server, in_front_of(double) as served:
        await served.chat("hi", program="p")
        assert server.channel is not None
        held = (Held(program="p", device_tokens=77), Held(program="unknown", device_tokens=5))
        server.channel.report(StepReport(engine="x", free_tokens=1, evictable_tokens=2, held=held))

        async def shown() -> bool:
            return bool((await served.programs())["p"]["held_device_tokens"] == 77)

        await until(shown, "the daemon knows what is held")


async def test_the_responses_api_says_it_in_the_body() -> None:
    async def answer(got: Got) -> None:
        await got.whole({"id": "r", "object": "response", "output": [], "usage": {"input_tokens": 1}})

    double = Double(answer)
    server_info(double)
    async with plugin(), in_front_of(double) as served:
        body = {"model": "m", "input": "hi", "session_id": "theirs"}
        await served.post("/v1/responses", body, x_agentsched_program="p")
    assert json.loads(double.requests[0].body) == {"model": "m", "input": "hi", "session_id": "p"}
    assert "x-smg-routing-key" not in double.requests[0].headers


async def test_a_stock_server_is_ordered_nothing_and_told_nothing() -> None:
    double = Double(plainly)
    server_info(double, backend=None)
    async with in_front_of(double) as served:
        assert not next(iter(served.daemon.engines.values())).capabilities.retention
        await served.chat("hi", program="p")
        assert await served.metric("agentsched_decisions_total", kind="Retain") == 0
    assert "x-smg-routing-key" not in double.requests[0].headers


async def test_a_plugin_out_of_reach_is_said_and_served_without_retention(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    double = Double(plainly)
    server_info(double)
    async with in_front_of(double) as served:
        assert not next(iter(served.daemon.engines.values())).capabilities.retention
        assert (await served.chat("hi"))[0] == 200
    assert any("served without retention" in message for message in caplog.messages)


async def test_calls_go_on_while_the_channel_is_lost_and_orders_are_there_when_it_is_back() -> None:
    double = Double(plainly)
    server_info(double)
    async with plugin() as first, in_front_of(double) as served:
        await served.chat("hi", program="p")
        await until(lambda: any(isinstance(o, Retain) for o in first.orders), "its KV is retained")
        assert first.channel is not None
        engine = next(iter(served.daemon.engines.values()))
        async with plugin() as second:  # the first one's place is taken, and its daemon goes with this
            first.channel.close()
            assert (await served.chat("hi", program="q"))[0] == 200
            retained: set[str] = set()

            def both() -> bool:
                retained.update(o.program for o in second.orders if isinstance(o, Retain))
                return retained == {"p", "q"}

            await until(both, "what stands is ordered anew")
            assert next(iter(served.daemon.engines.values())) is engine


async def test_another_process_behind_the_channel_is_another_engine() -> None:
    double = Double(plainly)
    server_info(double)
    async with plugin() as first, in_front_of(double) as served:
        await served.chat("hi", program="p")
        engine = next(iter(served.daemon.engines.values()))
        assert first.channel is not None
        async with plugin(life="two"):
            first.channel.close()

            def anew() -> bool:
                engines = list(served.daemon.engines.values())
                return bool(engines) and engines[0] is not engine

            await until(anew, "the engine is attached anew")
            assert (await served.chat("hi again", program="p"))[0] == 200
