"""Standing orders in a real SGLang server of two ranks. Ranks whose trees differ would compute batches of
different shapes, and wait for each other for good."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from random import Random

import pytest

from agentsched.core.decisions import YIELDS
from agentsched.workloads.sglang_model import write_model
from agentsched.workloads.sglang_server import PLUGIN, SglangServer
from tests.daemon.serving import until
from tests.sglang.serving import POOL_TOKENS, Pilot

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sockets: None) -> Iterator[SglangServer]:
    folder = tmp_path_factory.mktemp("ranks")
    write_model(folder)
    cores = sorted(os.sched_getaffinity(0))
    bound = {"SGLANG_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"}
    server = SglangServer(folder, (*PLUGIN, "--tp-size", "2"), environment=bound)
    try:
        server.start()
        yield server
    finally:
        server.kill()


async def test_pins_tails_and_broken_leases_are_the_same_on_both(pilot: Pilot) -> None:
    await pilot.call("a", 1_500, seed=1)
    await pilot.order(pilot.retain("a", (0, 600, 5.0)))
    await pilot.press()
    assert await pilot.call("a", 1_500, seed=1) == 600
    await pilot.flush()
    for number, name in enumerate("bcd"):
        await pilot.call(name, 1_100, seed=number)
        await pilot.order(pilot.retain(name, (0, 1_104, 2.0 + number)))
    assert await pilot.call("e", 1_500, seed=9) == 0
    await until(lambda: pilot.broken, "a lease is broken")
    await pilot.look()
    assert pilot.broken == ["b"]
    assert pilot.held["c"] == pilot.held["d"] == 1_103


async def test_they_go_on_alike_while_orders_come_and_leases_end(pilot: Pilot) -> None:
    """More calls than fit, and leases that end in the midst of them."""
    rng = Random(1)

    async def agent(number: int) -> None:
        name = f"agent{number}"
        for turn in range(4):
            await pilot.call(name, 300 + 120 * turn, seed=30 + number, output=8)
            assert pilot.link is not None
            value = rng.choice((YIELDS / 2, YIELDS, 3.0))
            kept = pilot.retain(name, (0, 250, value), (250, 700, value / 2), ttl_s=rng.uniform(0.05, 1.0))
            await pilot.link.send([kept, pilot.rank(name, rng.random())])

    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(agent(number))
    await pilot.sees(lambda report: report.running == report.queued == 0, "nothing runs")
    await pilot.order(*(pilot.release(program) for program in list(pilot.held)))
    report = await pilot.look()
    assert report.free_tokens + report.evictable_tokens == POOL_TOKENS
    assert await pilot.call("last", 2_500, seed=99) == 0
