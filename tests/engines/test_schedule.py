"""Who goes first within a step: chunk borders, displaced prefills, affinity, and that nobody starves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core.decisions import EngineTerms, Rank
from agentsched.core.events import CallAborted
from agentsched.engines.execution import Row
from agentsched.engines.schedule import LONGER, OVERTAKEN_AT_MOST
from tests.engines.bench import BLOCK, Bench, answer, prompt


def ranked(bench: Bench, **keys: float) -> None:
    for program, key in keys.items():
        bench.order(Rank, program=program, key=key)


@pytest.mark.parametrize("num_blocks", [100, 44])
def test_an_urgent_call_waits_for_the_chunk_that_is_on_and_no_longer(num_blocks: int) -> None:
    """Also where the long prefill has nearly all the room that there is."""
    bench = Bench(num_blocks, chunk_tokens=16)
    ranked(bench, long=2.0, urgent=1.0)
    bench.submit("long", prompt(1, 160), output=2)
    bench.step(2)
    bench.submit("urgent", prompt(2, 16), output=2)
    bench.step()
    assert [row.call for row in bench.executor.rows] == ["urgent"]
    assert len(bench.tokens("urgent")) == 1
    bench.drain()
    assert bench.end("long").recomputed_tokens == 0, "what it had computed was still there"
    assert bench.tokens("long") == answer(prompt(1, 160), 2)


def test_an_urgent_call_takes_the_place_of_a_long_prefill() -> None:
    bench = Bench(100, chunk_tokens=16, max_running=1)
    ranked(bench, long=2.0, urgent=1.0)
    bench.submit("long", prompt(1, 160))
    bench.step(2)
    bench.submit("urgent", prompt(2, 16))
    bench.step()
    assert bench.end("urgent").output_tokens == 1
    assert bench.report().preempted == ("long",)


@given(st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_only_a_prefill_with_much_more_to_do_is_displaced(blocks: int, done: int, decodes: bool) -> None:
    bench = Bench(44, chunk_tokens=BLOCK)
    ranked(bench, long=2.0, urgent=1.0)
    bench.submit("long", prompt(1, 160), output=4)
    bench.step(done)
    if decodes:
        bench.step(40 - done)
    bench.submit("urgent", prompt(2, blocks * BLOCK))
    bench.step()
    left = 40 - (40 if decodes else done)
    fits = blocks + 1 <= 44 - 40
    assert bool(bench.report().preempted) is (not fits and left >= LONGER * blocks)
    bench.drain()
    assert bench.end("urgent").output_tokens == 1
    assert bench.end("long").output_tokens == 4


def test_without_ranks_nobody_is_displaced() -> None:
    bench = Bench(44, chunk_tokens=16)
    bench.submit("long", prompt(1, 160))
    bench.step()
    bench.submit("short", prompt(2, 20))
    bench.drain()
    assert bench.report().preempted == ()
    assert bench.started() == ["long", "short"]


def test_nobody_is_displaced_for_a_call_that_cannot_start_all_the_same() -> None:
    bench = Bench(44, chunk_tokens=4)
    ranked(bench, long=2.0, urgent=1.0)
    bench.submit("runs", prompt(3, 4), output=8)
    bench.submit("long", prompt(1, 128))
    bench.step(2)
    bench.order(EngineTerms, free_floor_tokens=200)
    bench.submit("urgent", prompt(2, 28))
    bench.step()
    assert bench.report().preempted == ()
    bench.drain()
    assert bench.started() == ["runs", "long", "urgent"]


def test_calls_of_equal_rank_that_share_a_prefix_go_together() -> None:
    bench = Bench(100, chunk_tokens=16, max_running=1)
    system, other = prompt(1, 24), prompt(2, 24)
    bench.run("seed", [*system, 1])
    names = ("a1", "b1", "a2", "b2", "a3")
    ranked(bench, **dict.fromkeys(names, 1.0))
    for name in names:
        bench.submit(name, [*(system if name[0] == "a" else other), 9])
    bench.drain()
    assert bench.started() == ["seed", "a1", "a2", "a3", "b1", "b2"]


def test_affinity_never_crosses_ranks_and_needs_them() -> None:
    for keys, order in (({"a": 2.0, "b": 1.0}, ["b", "a"]), ({}, ["b", "a"])):
        bench = Bench(100, max_running=1)
        bench.run("seed", prompt(1, 24))
        ranked(bench, **keys)
        for name in ("b", "a"):
            bench.submit(name, prompt(1 if name == "a" else 2, 25))
        bench.drain()
        assert bench.started() == ["seed", *order]


def test_a_call_is_overtaken_for_affinity_a_few_times_at_most() -> None:
    bench = Bench(100, max_running=1)
    bench.run("seed", prompt(1, 24))
    ranked(bench, cold=1.0, **{f"warm{n}": 1.0 for n in range(40)})
    bench.submit("cold", prompt(2, 25))
    for number in range(40):
        bench.submit(f"warm{number}", prompt(1, 25))
        bench.step()
    bench.drain()
    assert bench.started().index("cold") == 1 + OVERTAKEN_AT_MOST


# What fails in a step


def test_only_the_call_whose_logits_are_not_finite_ends() -> None:
    bench = Bench()
    for number, name in enumerate(("a", "b", "c")):
        bench.submit(name, prompt(number, 5), output=6)
    bench.step(2)

    def fault(rows: object) -> Sequence[int]:
        bench.executor.fault = None
        return [1]

    bench.executor.fault = fault
    bench.drain()
    [aborted] = [item for item in bench.outputs if isinstance(item, CallAborted)]
    assert aborted.call == "b"
    assert "not finite" in aborted.reason
    for number, name in ((0, "a"), (2, "c")):
        assert bench.tokens(name) == answer(prompt(number, 5), 6)


def test_too_little_memory_ends_the_largest_rows_until_the_rest_can_be_computed() -> None:
    bench = Bench(64, chunk_tokens=64)
    bench.submit("small", prompt(1, 5), output=9)
    bench.step(2)
    bench.submit("middle", prompt(2, 20))
    bench.submit("large", prompt(3, 40))

    def fault(rows: Sequence[Row]) -> Sequence[int]:
        if sum(len(row.tokens) for row in rows) > 8:
            raise MemoryError("too little memory for this step")
        return ()

    bench.executor.fault = fault
    bench.drain()
    aborted = [item for item in bench.outputs if isinstance(item, CallAborted)]
    assert [item.call for item in aborted] == ["large", "middle"]
    assert "too little memory" in aborted[0].reason
    assert bench.tokens("small") == answer(prompt(1, 5), 9)
