"""The batching engine's rules, one at a time."""

from __future__ import annotations

import pytest

from agentsched.core.decisions import EngineTerms, Prefetch, Rank
from agentsched.core.events import CallAborted, CallFinished
from agentsched.engines.contract import RequestRefused
from tests.engines.bench import Bench, failing, prompt


def test_decoding_rows_go_first_and_prefill_shares_one_chunk() -> None:
    bench = Bench(chunk_tokens=10)
    bench.submit("a", prompt(1, 6), output=9)
    bench.submit("b", prompt(2, 12))
    bench.step()
    assert [(row.call, len(row.tokens)) for row in bench.executor.rows] == [("a", 6), ("b", 4)]
    bench.step()
    assert [(row.call, len(row.tokens)) for row in bench.executor.rows] == [("a", 1), ("b", 8)]


def test_chunks_follow_the_terms() -> None:
    bench = Bench()
    bench.order(EngineTerms, chunk_tokens=5, max_running=1)
    bench.submit("a", prompt(1, 12))
    bench.submit("b", prompt(2, 4))
    bench.step()
    assert [(row.call, len(row.tokens)) for row in bench.executor.rows] == [("a", 5)]
    bench.step(3)
    assert bench.started() == ["a", "b"]


def test_a_better_rank_takes_the_chunk_from_a_prefill_in_progress() -> None:
    bench = Bench(chunk_tokens=4)
    bench.order(Rank, program="late", key=1.0)
    bench.order(Rank, program="early", key=2.0)
    bench.submit("early", prompt(1, 12))
    bench.step()
    bench.submit("late", prompt(2, 8))
    bench.step(2)
    assert [row.call for row in bench.executor.rows] == ["late"]
    bench.drain()
    assert bench.started() == ["early", "late"]


def test_nobody_overtakes_a_head_that_finds_no_room() -> None:
    bench = Bench(num_blocks=8)
    bench.submit("runs", prompt(1, 16), output=6)
    bench.step()
    bench.submit("large", prompt(2, 20))
    bench.submit("small", prompt(3, 4))
    bench.step(3)
    assert bench.started() == ["runs"]
    bench.drain()
    assert bench.started() == ["runs", "large", "small"]


def test_a_start_leaves_room_for_running_calls_to_grow() -> None:
    bench = Bench(num_blocks=8)
    bench.submit("runs", prompt(1, 16), output=9)
    bench.step()
    bench.submit("next", prompt(2, 16))
    bench.drain()
    assert bench.report().preempted == ()


def test_the_free_floor_holds_back_new_calls_only_while_others_run() -> None:
    bench = Bench(num_blocks=16)
    bench.order(EngineTerms, free_floor_tokens=48)
    bench.submit("runs", prompt(1, 8), output=4)
    bench.step()
    bench.submit("next", prompt(2, 16))
    bench.step()
    assert bench.started() == ["runs"]
    bench.drain()
    assert bench.started() == ["runs", "next"]


def test_retained_kv_makes_a_new_call_wait_until_the_engine_is_stuck() -> None:
    bench = Bench(num_blocks=8)
    bench.run("kept", prompt(1, 16))
    bench.retain("kept", 1.0)
    bench.submit("runs", prompt(2, 4), output=4)
    bench.step()
    bench.submit("waits", prompt(3, 20))
    bench.step()
    assert bench.started() == ["kept", "runs"]
    assert bench.report().broken_leases == ()
    bench.drain()
    assert bench.started() == ["kept", "runs", "waits"]
    assert bench.report().broken_leases == ("kept",)


def test_a_growing_call_takes_the_lowest_value_above_the_price_too() -> None:
    bench = Bench(num_blocks=8)
    bench.run("dear", prompt(1, 8))
    bench.run("cheap", prompt(2, 8))
    bench.retain("dear", 2.0)
    bench.retain("cheap", 1.0)
    bench.submit("grows", prompt(3, 15), output=6)
    bench.drain()
    report = bench.report()
    held = {entry.program: entry.device_tokens for entry in report.held}
    assert (held["dear"], held["cheap"]) == (8, 4)
    assert report.broken_leases == report.preempted == ()


def test_the_worst_rank_is_preempted_and_computed_again() -> None:
    bench = Bench(num_blocks=8)
    bench.order(Rank, program="good", key=1.0)
    bench.order(Rank, program="bad", key=2.0)
    bench.submit("bad", prompt(1, 10), output=14)
    bench.submit("good", prompt(2, 10), output=14)
    bench.drain()
    report = bench.report()
    assert report.preempted == ("bad",)
    assert report.recomputed_tokens == bench.end("bad").recomputed_tokens > 0
    assert bench.tokens("bad") == bench.executor.expected["bad"][10:]
    assert bench.started() == ["good", "bad"], "a call that goes on is not started twice"


def test_among_equal_ranks_the_latest_is_preempted() -> None:
    bench = Bench(num_blocks=8)
    for number, call in enumerate(("first", "second")):
        bench.submit(call, prompt(number, 10), output=14)
    bench.drain()
    assert bench.report().preempted == ("second",)


def test_a_failed_batch_aborts_its_calls_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(chunk_tokens=4)
    bench.submit("a", prompt(1, 4), output=3)
    bench.submit("b", prompt(2, 8))
    bench.step()
    bench.executor.fault = failing
    bench.submit("waits", prompt(3, 4))
    bench.step()
    bench.executor.fault = None
    aborted = [item for item in bench.outputs if isinstance(item, CallAborted)]
    assert [item.call for item in aborted] == ["a", "b"]
    assert "logits are not finite" in aborted[0].reason
    assert "2 rows failed" in caplog.text
    assert bench.report().evictable_tokens == 0, "what a failed batch computed is no cache"
    bench.drain()
    assert bench.end("waits").output_tokens == 1


def test_an_abort_is_told_by_the_next_step_and_unknown_calls_are_ignored() -> None:
    bench = Bench(max_running=1)
    bench.submit("runs", prompt(1, 8), output=5)
    bench.submit("waits", prompt(2, 8))
    bench.step()
    for call in ("waits", "runs", "unknown", "runs"):
        bench.engine.abort(call, bench.now)
    assert bench.engine.has_work
    bench.step()
    ends = [item.call for item in bench.outputs if isinstance(item, CallAborted)]
    assert ends == ["waits", "runs"]
    assert not bench.engine.has_work
    assert bench.run("runs", prompt(1, 8)).cached_tokens == 4


def test_an_id_is_free_again_after_its_call_and_not_before() -> None:
    bench = Bench()
    bench.submit("a", prompt(1, 4))
    with pytest.raises(RequestRefused, match="in use"):
        bench.submit("a", prompt(2, 4))
    bench.drain()
    bench.submit("a", prompt(2, 5))
    bench.drain()
    sizes = [item.prompt_tokens for item in bench.outputs if isinstance(item, CallFinished)]
    assert sizes == [4, 5]


def test_there_is_no_host_tier_to_prefetch_from() -> None:
    bench = Bench()
    bench.order(Prefetch, program="p", by_s=1.0)
    assert not bench.engine.capabilities.host_tier
    assert not bench.engine.has_work


def test_a_snapshot_lists_all_programs_and_a_report_the_changed_ones() -> None:
    bench = Bench()
    bench.run("a", prompt(1, 8))
    bench.report()
    bench.run("b", prompt(2, 8))
    assert [entry.program for entry in bench.report().held] == ["b"]
    snapshot = bench.engine.report(bench.now, snapshot=True)
    assert [entry.program for entry in snapshot.held] == ["a", "b"]
    assert snapshot.snapshot
