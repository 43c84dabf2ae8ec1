"""The prefix tree of runs: what it forgets, and what it must not."""

from __future__ import annotations

import tracemalloc
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core import Core, make_policy
from agentsched.core.standing import StandingOrders
from agentsched.engines import runs_kv
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.cost import PROFILES
from agentsched.engines.runs_kv import Node, RunCache
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.scripts import Piece, Script, Turn
from agentsched.workloads.simulator import Simulation

BLOCK = 16


def nodes(cache: RunCache) -> list[Node]:
    found = [cache._root]
    for node in found:
        found += node.children.values()
    return found


def run_call(cache: RunCache, program: str, pieces: list[tuple[str, int]], now: float) -> int:
    """A whole call; how many of its blocks the cache had held once and does not any more."""
    path = cache.path(pieces)
    full = sum(path.blocks)
    device, _, once = cache.match(path, full)
    cache.pin(path)
    fresh = full - device
    for node, blocks in cache.victims(fresh - cache.free_blocks, now, 0.0):
        cache.evict(node, blocks, now)
    cache.own(program, path)
    cache.reserve(program, fresh)
    taken = cache.commit(program, path, full)
    cache.give_back(program, fresh - taken)
    cache.touch(path, now)
    cache.unpin(path)
    cache.check_invariants()
    return once - device


def test_nodes_of_programs_that_ended_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_kv, "EMPTY_REMEMBERED", 5)
    cache = RunCache(20, BLOCK, StandingOrders())
    for number in range(200):
        pieces = [("system", 4 * BLOCK), (f"p{number}", 3 * BLOCK)]
        assert run_call(cache, f"p{number}", pieces, float(number)) == 0
        cache.disown(f"p{number}")
    held = sum(node.held > 0 for node in nodes(cache))
    assert len(nodes(cache)) <= 1 + held + 5


def test_a_live_program_is_remembered_however_many_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_kv, "EMPTY_REMEMBERED", 5)
    cache = RunCache(20, BLOCK, StandingOrders())
    run_call(cache, "long", [("long", 6 * BLOCK)], 0.0)
    for number in range(100):
        run_call(cache, f"p{number}", [(f"p{number}", 7 * BLOCK)], 1.0 + number)
        cache.disown(f"p{number}")
    assert run_call(cache, "long", [("long", 6 * BLOCK)], 200.0) == 6, "all of it was held once, and is gone"


def test_what_ended_lately_still_counts_as_held_once() -> None:
    cache = RunCache(10, BLOCK, StandingOrders())
    run_call(cache, "a", [("shared", 8 * BLOCK)], 0.0)
    cache.disown("a")
    run_call(cache, "b", [("other", 10 * BLOCK)], 1.0)
    cache.disown("b")
    assert run_call(cache, "c", [("shared", 8 * BLOCK)], 2.0) == 8


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 3), st.booleans()), max_size=40)
)
def test_books_agree_whatever_is_forgotten(calls: list[tuple[int, int, int, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_kv, "EMPTY_REMEMBERED", 1)
        cache = RunCache(12, BLOCK, StandingOrders())
        for now, (program, blocks, prefix, ends) in enumerate(calls):
            pieces = [(f"head{prefix}", prefix * BLOCK), (f"p{program}", blocks * BLOCK)]
            run_call(cache, f"p{program}", pieces, float(now))
            if ends:
                cache.disown(f"p{program}")
            cache.check_invariants()


def test_memory_stays_flat_while_programs_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_kv, "EMPTY_REMEMBERED", 50)
    turns = (Turn(600, 20, 0.5, "bash"), Turn(200, 20, 0.5, "bash"))
    head = (Piece("system", 256),)
    engine = AnalyticEngine(PROFILES["llama-3.1-8b-h100"], 4_000)
    coming = (Script(f"p{number}", 0.0, turns, head) for number in count())
    first = [next(coming) for _ in range(8)]
    simulation = Simulation(
        Core(make_policy("fcfs-lru")),
        [engine],
        first,
        Conditions(concurrency=8),
        then=coming,
        log=lambda _: None,
    )

    def grown(until_s: float) -> int:
        simulation.run(until_s=until_s)
        return len(nodes(engine.kv))

    tracemalloc.start()
    try:
        before_nodes, before = grown(300.0), tracemalloc.get_traced_memory()[0]
        ended = simulation.ended
        after_nodes, after = grown(900.0), tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    more = simulation.ended - ended
    assert more > 500
    assert after_nodes <= before_nodes + 10
    # Time of decisions and numbers of orders, both up to a limit, take some; a program used to take 1,100.
    assert (after - before) / more < 700
