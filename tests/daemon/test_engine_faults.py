"""Engines that are down, slow or lie: what clients and programs see of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from agentsched.core import events as ev
from agentsched.core.events import PROTOCOL
from agentsched.engines.byte_frontend import VOCABULARY
from agentsched.engines.contract import GenerateRequest, TokensOut
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.process import EngineProcess
from agentsched.engines.simulated import simulated
from agentsched.engines.streams import CallItem
from agentsched.engines.wire import Hello, WireError, check, hello
from tests.daemon.serving import DEADLINE_S, FAST, Served, served, until

COMMAND = [sys.executable, "-m", "agentsched.engines.simulated", "--kv-tokens", "4096"]
COMMAND += ["--vocabulary", str(VOCABULARY), "--step-s", "0.01"]

Lie = Callable[[CallItem], list[CallItem]]


class Liar(InProcessEngine):
    """Tells of calls what ``lie`` makes of it."""

    def __init__(self, lie: Lie, reports: Callable[[ev.StepReport], ev.StepReport]) -> None:
        super().__init__(simulated(FAST, 4096, vocabulary=VOCABULARY), name="liar")
        self._lie, self._lie_of_reports = lie, reports

    async def generate(self, request: GenerateRequest) -> AsyncIterator[CallItem]:
        async for item in super().generate(request):
            for told in self._lie(item):
                yield told

    async def reports(self) -> AsyncIterator[ev.StepReport]:
        async for report in super().reports():
            yield self._lie_of_reports(report)


def lying(
    lie: Lie = lambda item: [item], reports: Callable[[ev.StepReport], ev.StepReport] = lambda report: report
) -> Callable[[], Liar]:
    return lambda: Liar(lie, reports)


def more_cached(item: CallItem) -> list[CallItem]:
    if isinstance(item, ev.CallFinished):
        return [msgspec.structs.replace(item, cached_tokens=10**6, prompt_tokens=3, output_tokens=10**6)]
    return [item]


def twice(item: CallItem) -> list[CallItem]:
    return [item] if isinstance(item, TokensOut) else [item, item]


def backwards(item: CallItem) -> list[CallItem]:
    return [] if isinstance(item, ev.CallStarted) else [item]


def on_and_on(item: CallItem) -> list[CallItem]:
    return [item, *[item] * 100] if isinstance(item, TokensOut) else [item]


async def nothing_is_left(served_: Served) -> None:
    """The core and the daemon know that no call is live, and serve the next one of the same program."""
    assert await served_.metric("agentsched_calls_live", phase="decoding") == 0
    programs = await served_.programs()
    assert programs["p"]["calls"] == {}


async def test_accounts_that_cannot_be_are_put_right(caplog: pytest.LogCaptureFixture) -> None:
    async with served(make_engine=lying(more_cached)) as served_:
        _, body, _ = await served_.chat("/say yes", program="p")
        usage = body["usage"]
        assert usage["prompt_tokens"] > 3
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"]
        assert usage["completion_tokens"] < 10
        assert "cannot be" in caplog.text
        await nothing_is_left(served_)


@pytest.mark.parametrize("lie", [twice, backwards])
async def test_steps_out_of_order_leave_no_call_behind(lie: Lie) -> None:
    async with served(make_engine=lying(lie)) as served_:
        for _ in range(2):
            status, body, _ = await served_.chat("/say yes", program="p")
            assert (status, body["choices"][0]["message"]["content"]) == (200, "yes")
            await nothing_is_left(served_)


async def test_an_answer_that_does_not_end_is_ended() -> None:
    async with served(make_engine=lying(on_and_on)) as served_:
        status, body, _ = await served_.chat("no meaning", program="p", max_tokens=5)
        assert (status, "past the 5 tokens" in body["error"]["message"]) == (500, True)
        await nothing_is_left(served_)


async def test_reports_that_cannot_be_stop_nothing() -> None:
    def wild(report: ev.StepReport) -> ev.StepReport:
        held = (ev.Held(program="nobody", device_tokens=10**9),)
        return msgspec.structs.replace(report, free_tokens=10**9, held=held, preempted=("nobody",))

    async with served(make_engine=lying(reports=wild)) as served_:
        for number in range(3):
            assert (await served_.chat("/say yes", program=f"p{number}"))[0] == 200


async def test_an_engine_that_hangs_is_started_anew_and_its_call_answered() -> None:
    async with served(make_engine=lambda: EngineProcess("simulated", COMMAND), stall_s=0.5) as served_:

        def pid() -> int | None:
            engine = served_.daemon.engines.get("simulated")
            return engine.pid if isinstance(engine, EngineProcess) else None

        hung = pid()
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        answer = asyncio.create_task(served_.chat("/say yes", program="p"))
        await until(lambda: pid() not in {hung, None}, "another engine is there")
        status, body, _ = await asyncio.wait_for(answer, DEADLINE_S)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "yes")


async def test_an_engine_that_has_nothing_to_do_may_be_silent() -> None:
    async with served(make_engine=lambda: EngineProcess("simulated", COMMAND), stall_s=0.05) as served_:
        engine = served_.daemon.engines["simulated"]
        await asyncio.sleep(0.3)  # several times as long as it may be silent with a call
        assert served_.daemon.engines["simulated"] is engine


def test_an_engine_of_another_protocol_is_refused() -> None:
    capabilities = simulated(FAST, 64).capabilities
    check(hello(capabilities))
    with pytest.raises(WireError, match=r"speaks protocol 0.*install the same version"):
        check(Hello(capabilities))


async def test_events_of_another_protocol_are_refused() -> None:
    async with served() as served_:
        body = {"events": [{"event": "ProgramOpened", "program": "p"}]}
        status, answer, _ = await served_.post("/agentsched/v1/events", body | {"protocol": 99})
        assert (status, answer["error"]["code"]) == (400, "protocol_differs")
        assert (await served_.post("/agentsched/v1/events", body | {"protocol": PROTOCOL}))[0] == 200
