"""The host of the core: in which order decisions are carried out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from agentsched.core.decisions import Admit, EngineOrder, Rank
from agentsched.core.events import Woken
from agentsched.daemon.host import Host
from agentsched.engines.contract import Capabilities

STAMP: dict[str, Any] = {"cause": 1, "epoch": 1, "program": "p", "engine": "e"}


class Decided:
    """A core whose every event lets a program in and ranks it, in this order."""

    engaged = True

    def handle(self, now: float, event: object) -> list[Any]:
        return [Admit(seq=1, **STAMP), Rank(seq=2, key=7.0, **STAMP)] if isinstance(event, Woken) else []

    def next_wakeup(self) -> None:
        return None


class Opened:
    """A gate at which one call waits."""

    def __init__(self) -> None:
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def carry_out(self, decision: object) -> None:
        self.open.set_result(None)


class Ordered:
    """An engine."""

    name = "e"
    capabilities = Capabilities(
        kind="k", capacity_tokens=1, block_tokens=1, max_context_tokens=1, vocabulary=0
    )

    def __init__(self) -> None:
        self.orders: list[EngineOrder] = []

    async def order(self, orders: Sequence[EngineOrder]) -> None:
        self.orders += orders


async def test_an_engine_knows_what_was_decided_before_the_call_that_it_is_about_is_let_through() -> None:
    core: Any = Decided()
    gate: Any = Opened()
    engine: Any = Ordered()
    host = Host(core, gate)
    host.attach(engine)

    async def call() -> list[EngineOrder]:
        await gate.open
        return list(engine.orders)

    waiting = asyncio.create_task(call())
    await asyncio.sleep(0)
    host.post(Woken())
    assert [type(order) for order in await waiting] == [Rank]
    host.close()
