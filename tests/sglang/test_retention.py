"""Standing orders inside a real SGLang server."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from agentsched.core.decisions import YIELDS
from agentsched.workloads.sglang_server import PLUGIN, SglangServer
from tests.daemon.serving import until
from tests.sglang.serving import POOL_TOKENS, Pilot

pytestmark = pytest.mark.timeout(300)


def test_the_cache_in_use_is_ours(server: SglangServer) -> None:
    assert "source=registered('agentsched') impl=RetainingCache" in server.log


async def test_without_orders_it_is_lru(pilot: Pilot) -> None:
    await pilot.call("a", 900, seed=1)
    await pilot.press()
    assert await pilot.call("a", 900, seed=1) == 0


async def test_a_pin_survives_pressure_that_evicts_what_has_none(pilot: Pilot) -> None:
    await pilot.call("a", 900, seed=1)
    await pilot.call("b", 900, seed=2)
    await pilot.order(pilot.retain("a", (0, 904, float("inf"))))
    await pilot.press()
    assert await pilot.call("a", 900, seed=1) == 899
    assert await pilot.call("b", 900, seed=2) == 0


async def test_a_pin_ends_with_its_ttl(pilot: Pilot) -> None:
    await pilot.call("a", 900, seed=1)
    began_s = time.monotonic()
    await pilot.order(pilot.retain("a", (0, 904, float("inf")), ttl_s=1.0))
    await pilot.sees(lambda report: report.evictable_tokens >= 903, "its lease is over")
    assert time.monotonic() - began_s >= 1.0
    await pilot.press()
    assert await pilot.call("a", 900, seed=1) == 0


async def test_a_pin_ends_by_release(pilot: Pilot) -> None:
    await pilot.call("a", 900, seed=1)
    await pilot.order(pilot.retain("a", (0, 904, float("inf"))))
    assert (await pilot.look()).evictable_tokens == 0
    await pilot.order(pilot.release("a"))
    assert (await pilot.look()).evictable_tokens == 903
    await pilot.press()
    assert await pilot.call("a", 900, seed=1) == 0


async def test_the_tail_goes_and_the_head_stays(pilot: Pilot) -> None:
    await pilot.call("a", 1_500, seed=1)
    await pilot.order(pilot.retain("a", (0, 600, 5.0)))
    await pilot.press()
    assert await pilot.call("a", 1_500, seed=1) == 600


async def test_no_more_of_a_tail_goes_than_is_needed(pilot: Pilot) -> None:
    await pilot.call("a", 1_500, seed=1)
    await pilot.order(pilot.retain("a", (0, 1_504, YIELDS)))
    # 2,497 are free: the first two fit beside it, the third takes some 650 of its tokens
    for number in range(3):
        await pilot.call("b", 1_000, seed=10 + number)
        await pilot.order(pilot.retain("b", (0, 1_004, 5.0)))
    cached = await pilot.call("a", 1_500, seed=1)
    assert 700 < cached < 1_100


async def test_what_is_worth_less_goes_first_whatever_was_used_last(pilot: Pilot) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        await pilot.call(name, 1_000, seed=seed)
    await pilot.order(
        pilot.retain("a", (0, 1_004, YIELDS)), pilot.retain("b", (0, 1_004, YIELDS / 2)), pilot.release("c")
    )
    await pilot.call("c", 1_500, seed=3)
    await pilot.order(pilot.retain("c", (0, 1_504, 5.0)))
    await pilot.call("d", 1_200, seed=4)
    assert await pilot.call("a", 1_000, seed=1) == 999
    assert await pilot.call("b", 1_000, seed=2) < 500


async def test_reports_say_what_is_held_and_count_what_is_shared_for_each(pilot: Pilot) -> None:
    await pilot.call("a", 900, seed=1)
    await pilot.call("b", 500, seed=1)
    report = await pilot.look()
    assert {held.program: held.device_tokens for held in report.held} == {"a": 903, "b": 503}
    assert report.free_tokens == POOL_TOKENS - 903 - 3, "they share 500"
    await pilot.press()
    await pilot.look()
    assert pilot.held.get("a", 0) == 0
    assert sum(report.evicted_tokens for report in pilot.reports) > 900


async def test_calls_wait_for_what_is_pinned_until_nothing_else_goes_on(pilot: Pilot) -> None:
    """All but 700 tokens are pinned; a call that needs more breaks the lease that is worth least, once."""
    for number, name in enumerate("abc"):
        await pilot.call(name, 1_100, seed=number)
        await pilot.order(pilot.retain(name, (0, 1_104, 2.0 + number)))
    assert await pilot.call("d", 1_500, seed=9) == 0
    await until(lambda: pilot.broken, "a lease is broken")
    await pilot.look()
    assert pilot.broken == ["a"]
    assert pilot.held["b"] == pilot.held["c"] == 1_103


async def test_calls_wait_for_pins_in_the_order_of_their_ranks(pilot: Pilot) -> None:
    """Another call runs, so nobody is stuck: those behind the pin wait until it is gone."""
    await pilot.call("pinned", 2_300, seed=8)
    await pilot.order(pilot.retain("pinned", (0, 2_304, 5.0)))
    ended: list[str] = []

    async def run(name: str, seed: int) -> None:
        await pilot.call(name, 1_900, seed=seed, output=1)
        ended.append(name)

    async with pilot.slowly(0.02):
        running = asyncio.create_task(pilot.call("runs", 100, seed=9, output=1_000))
        await pilot.sees(lambda report: report.running == 1, "it runs")
        async with asyncio.TaskGroup() as group:
            for number, name in enumerate("abc"):
                group.create_task(run(name, number))
            await pilot.sees(lambda report: report.queued == 3, "they are queued")
            await pilot.order(pilot.rank("a", 3.0), pilot.rank("b", 1.0), pilot.rank("c", 2.0))
            report = await pilot.look()
            assert (report.queued, report.running) == (3, 1)
            await pilot.order(pilot.release("pinned"))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await pilot.sees(lambda report: report.running == 0, "who went away is not computed for")
    assert ended == ["b", "c", "a"]
    assert pilot.broken == []


async def test_a_flush_forgets_who_held_what(pilot: Pilot) -> None:
    await pilot.call("a", 900, seed=1)
    await pilot.order(pilot.retain("a", (0, 904, 5.0)))
    await pilot.flush()
    report = await pilot.look()
    assert report.held == ()
    assert report.free_tokens == POOL_TOKENS


async def test_a_dead_daemons_orders_end_by_themselves(pilot: Pilot) -> None:
    await pilot.call("a", 900, seed=1)
    await pilot.order(pilot.retain("a", (0, 904, 5.0), ttl_s=2.0))
    assert pilot.link is not None
    await pilot.link.close()
    await pilot.press(calls=4)
    await pilot.connect()
    assert pilot.held["a"] == 903
    await pilot.sees(lambda report: report.evictable_tokens > 3_000, "its lease is over")


async def test_tails_are_cut_at_pages(model: Path, sockets: None) -> None:
    """Of 16 tokens; and in SGLang's loop without overlap of batches."""
    server = SglangServer(model, (*PLUGIN, "--page-size", "16", "--disable-overlap-schedule"))
    try:
        await asyncio.to_thread(server.start)
        async with aiohttp.ClientSession() as http:
            pilot = Pilot(server, http)
            await pilot.call("a", 1_500, seed=1)
            await pilot.connect()
            await pilot.order(pilot.retain("a", (0, 600, 5.0)))
            await pilot.press()
            assert await pilot.call("a", 1_500, seed=1) == 608
            assert pilot.link is not None
            await pilot.link.close()
    finally:
        server.kill()
