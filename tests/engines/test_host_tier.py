"""The host tier, one rule at a time: what goes down, what comes up, and when."""

from __future__ import annotations

import pytest

from agentsched.core.decisions import EngineTerms, Prefetch, Release
from agentsched.core.events import CallStarted
from agentsched.engines.cost import CostProfile
from agentsched.engines.host_tier import Move
from agentsched.engines.simulated import SimulatedLink, simulated
from tests.engines.bench import BLOCK, Bench, answer, failing, prompt

INFINITE = float("inf")


def bench_of(num_blocks: int = 8, host_blocks: int = 16, **more: int) -> Bench:
    return Bench(num_blocks, host_blocks=host_blocks, **more)


def on_host(bench: Bench, program: str) -> int:
    snapshot = bench.engine.report(bench.now, snapshot=True)
    return sum(entry.host_tokens for entry in snapshot.held if entry.program == program)


def on_device(bench: Bench, program: str) -> int:
    snapshot = bench.engine.report(bench.now, snapshot=True)
    return sum(entry.device_tokens for entry in snapshot.held if entry.program == program)


def cached(bench: Bench, call: str) -> int:
    [start] = [item for item in bench.outputs if isinstance(item, CallStarted) and item.call == call]
    return start.cached_tokens


def test_what_is_evicted_comes_back_from_host_memory() -> None:
    bench = bench_of()
    bench.run("a", prompt(1, 20))
    bench.run("b", prompt(2, 31))
    assert (on_device(bench, "a"), on_host(bench, "a")) == (0, 20)
    end = bench.run("a2", prompt(1, 21), program="a")
    assert (end.cached_tokens, end.recomputed_tokens) == (20, 0)
    assert bench.tokens("a2") == answer(prompt(1, 21), 1)
    assert on_host(bench, "a") == 0, "the tier is exclusive"


def test_without_orders_host_memory_is_lru_too() -> None:
    bench = bench_of(host_blocks=8)
    for number in range(1, 6):
        bench.run(f"p{number}", prompt(number, 16))
    assert [on_host(bench, f"p{number}") for number in range(1, 6)] == [0, 16, 16, 0, 0]
    assert [on_device(bench, f"p{number}") for number in range(1, 6)] == [0, 0, 0, 16, 16]


def test_what_is_worth_less_than_the_price_is_not_kept() -> None:
    bench = bench_of()
    bench.order(EngineTerms, host_price=1.0)
    for name, value in (("cheap", 0.5), ("dear", 1.0)):
        bench.run(name, prompt(len(name), 12))
        bench.retain(name, 0.0, host=value)
    bench.run("c", prompt(3, 31))
    assert bench.report().evicted_tokens == 12, "what went down was not lost"
    assert [on_host(bench, name) for name in ("cheap", "dear")] == [0, 12]


def test_a_full_tier_gives_its_cheapest_tail_for_what_is_worth_more() -> None:
    bench = bench_of(host_blocks=4)
    bench.run("dear", prompt(1, 12))
    bench.retain("dear", 0.0, host=2.0)
    bench.run("cheap", prompt(2, 8))
    bench.retain("cheap", 0.0, host=1.0)
    bench.run("c", prompt(3, 31))
    assert [on_host(bench, name) for name in ("dear", "cheap")] == [12, 4]
    bench.run("d", prompt(4, 31))
    assert [on_host(bench, name) for name in ("dear", "cheap", "c")] == [12, 4, 0]


def test_what_hangs_on_a_dropped_block_goes_with_it() -> None:
    bench = bench_of()
    bench.run("a", prompt(1, 24))
    bench.retain("a", 0.0, tokens=24, host=1.0)
    bench.submit("b", prompt(2, 16), output=1)
    bench.drain()
    assert (on_device(bench, "a"), on_host(bench, "a")) == (16, 8)
    bench.order(Release, program="a")
    bench.order(EngineTerms, host_price=1.0)
    bench.run("c", prompt(3, 31))
    assert (on_device(bench, "a"), on_host(bench, "a")) == (0, 0)


def test_others_compute_while_kv_comes_up() -> None:
    bench = bench_of(num_blocks=16)
    bench.run("a", prompt(1, 20))
    bench.run("b", prompt(2, 63))
    bench.submit("decodes", prompt(3, 4), output=12)
    bench.step(2)
    bench.submit("a2", prompt(1, 20), program="a")
    for said in range(2, 12):
        assert len(bench.tokens("decodes")) == said
        bench.step()
        if bench.tokens("a2"):
            break
    assert said > 3, "it took some steps to come up"
    assert cached(bench, "a2") == 16
    assert bench.tokens("a2") == answer(prompt(1, 20), 1)


def test_a_prefetch_brings_kv_up_ahead_of_the_call() -> None:
    bench = bench_of()
    bench.run("a", prompt(1, 20))
    bench.run("b", prompt(2, 31))
    assert on_host(bench, "a") == 20
    bench.order(Prefetch, program="a", by_s=bench.now + 9.0)
    assert bench.engine.has_work, "an idle engine does it too"
    bench.drain()
    assert (on_device(bench, "a"), on_host(bench, "a")) == (20, 0)
    bench.submit("a2", prompt(1, 21), program="a")
    bench.step()
    assert bench.end("a2").cached_tokens == 20, "it computes in its first step"


def test_a_prefetch_takes_no_room_from_what_is_worth_more() -> None:
    bench = bench_of()
    bench.run("a", prompt(1, 20))
    bench.run("b", prompt(2, 31))
    bench.retain("b", 1e-7)
    bench.order(Prefetch, program="a", by_s=bench.now + 9.0)
    bench.drain()
    assert (on_device(bench, "a"), on_host(bench, "a")) == (4, 16), "only the block that was free"
    bench.retain("a", 1e-6)
    bench.drain()
    assert on_device(bench, "a") == 20, "it is tried again when orders change"


def test_a_prefetch_brings_the_head_where_there_is_not_room_for_all() -> None:
    bench = bench_of()
    bench.run("a", prompt(1, 20))
    bench.run("b", prompt(2, 31))
    bench.retain("b", 1.0, tokens=20)
    bench.order(Prefetch, program="a", by_s=bench.now)
    bench.drain()
    assert (on_device(bench, "a"), on_host(bench, "a")) == (12, 20 - 12)


def test_a_prefetch_whose_time_is_over_is_forgotten() -> None:
    bench = bench_of()
    bench.run("a", prompt(1, 20))
    bench.run("b", prompt(2, 31))
    bench.retain("b", 1.0)
    bench.order(Prefetch, program="a", by_s=bench.now)
    bench.order(Release, program="b")
    bench.drain()
    assert on_device(bench, "a") == 4, "only the block that was free"


def test_a_prefetch_for_nobody_is_no_work() -> None:
    bench = bench_of()
    bench.order(Prefetch, program="unknown", by_s=1.0)
    assert not bench.engine.has_work


def test_kv_is_computed_again_where_that_is_cheaper() -> None:
    bench = bench_of(num_blocks=16)
    bench.run("a", prompt(1, 40))
    bench.run("b", prompt(2, 63))
    bench.shelf.takes_s = (INFINITE,)
    end = bench.run("a2", prompt(1, 41), program="a")
    assert (end.cached_tokens, end.recomputed_tokens) == (0, 40)
    assert on_host(bench, "a") == 0, "what is on the device again leaves host memory"
    assert on_device(bench, "a") == 40


def test_a_call_waits_for_a_block_that_comes_up_while_it_computes_the_same() -> None:
    bench = bench_of(num_blocks=32, host_blocks=64, chunk_tokens=36)
    bench.run("a", prompt(1, 100))
    bench.run("b", prompt(2, 127))
    assert on_host(bench, "a") == 100
    bench.shelf.takes_s = (INFINITE,)
    bench.submit("a2", prompt(1, 100), program="a", output=3)
    bench.step()
    bench.order(Prefetch, program="a", by_s=bench.now + 99.0)
    bench.drain()
    assert bench.shelf.brought
    assert bench.tokens("a2") == answer(prompt(1, 100), 3)


def test_an_abort_in_mid_promotion_leaves_nothing_behind() -> None:
    bench = bench_of()
    bench.run("a", prompt(1, 20))
    bench.run("b", prompt(2, 31))
    bench.submit("a2", prompt(1, 20), program="a")
    bench.step()
    bench.engine.abort("a2", bench.now)
    bench.engine.check_invariants()
    bench.drain()
    assert not bench.engine.has_work
    report = bench.engine.report(bench.now, snapshot=True)
    assert report.free_tokens + report.evictable_tokens == 8 * BLOCK


def test_a_failed_batch_keeps_nothing_in_host_memory_of_what_it_computed() -> None:
    bench = bench_of()
    bench.submit("a", prompt(1, 20), output=9)
    bench.step(2)
    bench.executor.fault = failing
    bench.step()
    bench.executor.fault = None
    bench.run("b", prompt(2, 31))
    assert on_host(bench, "a") == 0


def test_the_simulated_link_takes_one_after_the_other() -> None:
    link = SimulatedLink(CostProfile(host_tokens_per_s=16.0), 8, 16)
    link.promote([Move(0, 0)], now=10.0)
    link.promote([Move(1, 1)], now=10.5)
    assert link.load_s(1, now=11.0) == 2.0
    assert [link.promoted(now) for now in (10.9, 11.0, 11.9, 12.0)] == [0, 1, 1, 2]
    assert link.load_s(1, now=20.0) == 1.0


def test_the_simulated_engine_waits_for_as_long_as_the_link_takes() -> None:
    profile = CostProfile(step_s=0.0, prefill_token_s=1.0, decode_row_s=0.0, host_tokens_per_s=4.0)
    engine = simulated(profile, 64, host_tokens=64, block_tokens=4)
    assert engine.capabilities.host_tier
    assert (engine.capabilities.host_capacity_tokens, engine.capabilities.host_tokens_per_s) == (64, 4.0)
    bench = Bench()
    bench.engine = engine
    bench.executor.begin = lambda call, prompt: None  # type: ignore[method-assign]
    bench.run("a", prompt(1, 40))
    bench.run("b", prompt(2, 63))
    began_s = bench.now
    bench.run("a2", prompt(1, 41), program="a")
    assert bench.now - began_s == pytest.approx(40 / 4.0 + 1.0)
