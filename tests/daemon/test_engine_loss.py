"""Engines that die, and daemons that end: real engine processes, killed for real."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import psutil
import pytest

from agentsched.daemon.server import Daemon
from agentsched.daemon.settings import Settings
from agentsched.daemon.supervisor import Supervisor
from agentsched.engines.byte_frontend import VOCABULARY, ByteFrontend
from agentsched.engines.contract import Engine, EngineGone
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.process import EngineProcess
from agentsched.engines.simulated import simulated
from tests.daemon.serving import DEADLINE_S, FAST, Served, chat, served, until

COMMAND = [sys.executable, "-m", "agentsched.engines.simulated", "--kv-tokens", "4096"]
COMMAND += ["--vocabulary", str(VOCABULARY), "--step-s", "0.01"]


def process() -> EngineProcess:
    return EngineProcess("simulated", COMMAND)


def pid(served_: Served) -> int | None:
    engine = served_.daemon.engines.get("simulated")
    return engine.pid if isinstance(engine, EngineProcess) else None


async def test_a_call_without_output_yet_is_answered_by_the_next_engine() -> None:
    async with served(make_engine=process) as served_:
        first = pid(served_)
        assert first is not None
        answer = asyncio.create_task(served_.chat("no meaning", program="p", max_tokens=100))

        async def running() -> bool:
            return await served_.metric("agentsched_calls_live", phase="decoding") == 1

        await until(running, "the call runs")
        os.kill(first, signal.SIGKILL)
        status, body, _ = await asyncio.wait_for(answer, DEADLINE_S)
        assert (status, body["usage"]["completion_tokens"]) == (200, 100)
        assert pid(served_) not in {first, None}
        assert len(body["choices"][0]["message"]["content"]) == 100


async def test_a_stream_that_began_ends_with_an_error_and_the_next_call_is_served() -> None:
    async with served(make_engine=process) as served_:
        body = chat("no meaning", stream=True, max_tokens=1000)
        async with served_.http.post(served_.url + "/v1/chat/completions", json=body) as answer:
            while b'"content":' not in await answer.content.readline():
                pass
            victim = pid(served_)
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            rest = await asyncio.wait_for(answer.content.read(), DEADLINE_S)
        assert b"engine_unavailable" in rest
        assert b"[DONE]" not in rest
        assert (await served_.chat("/say back"))[0] == 200


async def test_losing_the_engine_twice_is_503() -> None:
    async with served(make_engine=process) as served_:
        answer = asyncio.create_task(served_.chat("no meaning", max_tokens=1000))
        for _ in range(2):

            async def decoding() -> bool:
                return (
                    pid(served_) is not None
                    and await served_.metric("agentsched_calls_live", phase="decoding") > 0
                )

            await until(decoding, "the call runs")
            victim = pid(served_)
            assert victim is not None
            os.kill(victim, signal.SIGKILL)

            async def noticed(victim: int = victim) -> bool:
                return pid(served_) != victim

            await until(noticed, "the loss is noticed")
        status, body, headers = await asyncio.wait_for(answer, DEADLINE_S)
        assert (status, body["error"]["code"]) == (503, "engine_unavailable")
        assert int(headers["Retry-After"]) >= 1


async def test_programs_resume_on_the_next_engine_and_fill_its_cache_again() -> None:
    async with served(make_engine=process) as served_:
        first = pid(served_)

        async def agent(name: str) -> list[int]:
            """Four calls of a growing conversation; the cached tokens of each."""
            messages: list[dict[str, str]] = [{"role": "user", "content": f"{name}: no meaning " * 20}]
            cached: list[int] = []
            while len(cached) < 4:
                status, body, _ = await served_.post(
                    "/v1/chat/completions",
                    {"model": "simulated", "messages": messages, "max_tokens": 20},
                    x_agentsched_program=name,
                )
                assert status == 200, body
                cached.append(body["usage"]["prompt_tokens_details"]["cached_tokens"])
                answer = body["choices"][0]["message"]["content"]
                messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "more"}]
            return cached

        agents = [asyncio.create_task(agent(f"p{number}")) for number in range(4)]

        async def second_calls() -> bool:
            programs = await served_.programs()
            return len(programs) == 4 and await served_.metric("agentsched_calls_live", phase="decoding") > 1

        await until(second_calls, "all programs run")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE_S):
            told = await asyncio.gather(*agents)
        assert pid(served_) not in {first, None}
        assert all(cached[-1] > 300 for cached in told), "the next engine's cache is used"
        assert set(await served_.programs()) == {"p0", "p1", "p2", "p3"}, "they are the programs they were"


async def test_no_engine_process_is_left_behind() -> None:
    async with served(make_engine=process) as served_:
        engine = pid(served_)
        assert engine is not None
        assert psutil.pid_exists(engine)
    assert not psutil.pid_exists(engine)


async def test_shutting_down_tells_those_who_still_wait() -> None:
    async with served(make_engine=process, drain_s=0.05) as served_:
        answer = asyncio.create_task(served_.chat("no meaning", max_tokens=3000))

        async def live() -> bool:
            return await served_.metric("agentsched_calls_live", phase="decoding") == 1

        await until(live, "the call runs")
        await served_.daemon.__aexit__(None, None, None)
        status, body, _ = await asyncio.wait_for(answer, DEADLINE_S)
        assert (status, body["error"]["code"]) == (503, "shutting_down")


async def test_an_engine_that_does_not_start_is_said_with_its_last_words() -> None:
    def broken() -> Engine:
        return EngineProcess("broken", [sys.executable, "-c", "import sys; sys.exit('no such model')"])

    with pytest.raises(EngineGone, match="no such model"):
        async with Daemon(broken, ByteFrontend(100), Settings(port=0)):
            pass


class Host:
    """Ends every engine as soon as it is attached."""

    def __init__(self) -> None:
        self.lives = 0
        self.tasks: list[asyncio.Task[None]] = []

    def attach(self, engine: Engine) -> None:
        self.lives += 1
        self.tasks.append(asyncio.create_task(engine.close()))

    def lost(self, engine: Engine) -> None: ...

    def post(self, event: Any) -> bool:
        return True


async def test_an_engine_that_keeps_dying_is_given_up() -> None:
    host: Any = Host()
    supervisor = Supervisor(lambda: InProcessEngine(simulated(FAST, 1024)), host, max_fast=2)
    with pytest.raises(EngineGone, match="2 times in a row"):
        await asyncio.wait_for(supervisor.run(), DEADLINE_S)
    assert host.lives == 2
    await asyncio.gather(*host.tasks)
