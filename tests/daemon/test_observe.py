"""A daemon that only observes, and one that begins or ends to do so."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agentsched.core.decisions import Pass
from agentsched.core.log import read
from agentsched.daemon.settings import Settings
from tests.daemon.serving import SLOW, served, until
from tests.daemon.test_waiting import BIG, KV, LONG, busy, waiting

WATCHING = Settings(port=0, drain_s=0.1, observe=True)
ACTING = Settings(port=0, drain_s=0.1)
SAY_YES = [*LONG, {"role": "user", "content": "/say yes"}]


async def test_nobody_waits_for_a_seat_and_the_log_says_who_would(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    async with busy(observe=True, log=log) as served_:
        assert await served_.metric("agentsched_policy_engaged") == 0
        held = asyncio.create_task(served_.chat("", messages=SAY_YES, program="second"))
        await until(lambda: waiting_in_engine(served_), "the engine has both")
        held.cancel()
    with log.open("rb") as lines:
        passed = [entry.decision for entry in read(lines)[1] if isinstance(entry.decision, Pass)]
    assert [decision.program for decision in passed] == ["second"]
    assert "would wait" in passed[0].reason


async def waiting_in_engine(served_: object) -> bool:
    programs = await served_.programs()  # type: ignore[attr-defined]
    return "second" in programs and programs["second"]["state"] == "running"


async def test_switched_to_observing_it_lets_go_who_waits() -> None:
    async with busy() as served_:
        held = asyncio.create_task(served_.chat("", messages=SAY_YES, program="second"))
        await until(lambda: waiting(served_, "second"), "it is held")
        served_.daemon.reload(WATCHING)
        await until(lambda: waiting_in_engine(served_), "it is in the engine")
        held.cancel()


async def test_switched_back_it_holds_again() -> None:
    async with busy(observe=True) as served_:
        served_.daemon.reload(ACTING)
        assert await served_.metric("agentsched_policy_engaged") == 1
        held = asyncio.create_task(served_.chat(BIG, program="second"))
        await until(lambda: waiting(served_, "second"), "it is held")
        held.cancel()


async def test_an_engine_lost_while_observing_gets_its_calls_again() -> None:
    async with served(SLOW, KV, observe=True) as served_:
        status, _, _ = await served_.chat("/say one", program="first")
        assert status == 200
        (engine,) = served_.daemon.engines.values()
        asking = asyncio.create_task(served_.chat("/say two words", program="second"))
        await until(lambda: waiting_in_engine(served_), "it runs")
        await engine.close()
        status, body, _ = await asking
        assert (status, body["choices"][0]["message"]["content"]) == (200, "two words")
