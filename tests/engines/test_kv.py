"""The block pool and its prefix tree."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core.decisions import Retain, Segment, Worth
from agentsched.core.standing import StandingOrders
from agentsched.engines.kv import HISTORY_PER_BLOCK, OWNERS_REMEMBERED, KvCache
from agentsched.engines.prefix import Key, Keys, Table

BLOCK = 4
INFINITE = float("inf")


def block_keys(context: Sequence[int], block_tokens: int, salt: str = "", shared: int = 0) -> list[Key]:
    return Keys(block_tokens, salt, shared).of(context)


def cache(num_blocks: int = 16) -> tuple[KvCache, StandingOrders]:
    orders = StandingOrders()
    return KvCache(num_blocks, BLOCK, orders), orders


def opened(kv: KvCache, program: str, context: Sequence[int]) -> Table:
    """Begin a call and compute its whole context."""
    keys = block_keys(context, BLOCK)
    path = kv.match(keys, len(keys), [])
    kv.pin(path)
    table = kv.open(program, path)
    kv.allocate(table, kv.blocks_for(len(context)) - len(path))
    for key in keys[len(path) :]:
        kv.fill(table, key)
    return table


def ran(kv: KvCache, program: str, context: Sequence[int], now: float) -> None:
    kv.release(opened(kv, program, context), now)


def cached(kv: KvCache, context: Sequence[int]) -> int:
    keys = block_keys(context, BLOCK)
    return len(kv.match(keys, len(keys), []))


def context(start: int, blocks: int) -> list[int]:
    return list(range(start, start + blocks * BLOCK))


def retain(program: str, tokens: int, value: float, seq: int = 1) -> Retain:
    segment = Segment(start_tokens=0, end_tokens=tokens, device=(Worth(until_s=INFINITE, value=value),))
    return Retain(
        program=program,
        engine="e",
        segments=(segment,),
        lease_until_s=INFINITE,
        cause=1,
        epoch=1,
        seq=seq,
    )


def held(kv: KvCache) -> dict[str, int]:
    return {entry.program: entry.device_tokens // BLOCK for entry in kv.held()}


def test_full_blocks_stay_as_cache_and_partial_ones_become_free() -> None:
    kv, _ = cache()
    table = opened(kv, "p", [*context(0, 3), 99])
    assert (kv.free_blocks, kv.idle_blocks) == (12, 0)
    kv.check_invariants([table])
    kv.release(table, 1.0)
    assert (kv.free_blocks, kv.idle_blocks) == (13, 3)
    assert cached(kv, context(0, 5)) == 3
    kv.check_invariants([])


def test_equal_blocks_of_two_calls_become_one() -> None:
    kv, _ = cache()
    tables = []
    for program in ("p", "q"):
        table = kv.open(program, [])
        kv.allocate(table, 2)
        tables.append(table)
    keys = block_keys(context(0, 2), BLOCK)
    for key in keys:
        for table in tables:
            kv.fill(table, key)
    assert tables[0].blocks == tables[1].blocks
    assert kv.free_blocks == 14
    assert held(kv) == {"p": 2, "q": 2}
    kv.check_invariants(tables)


def test_without_orders_the_longest_unused_goes_first_and_its_tail_before_its_head() -> None:
    kv, _ = cache()
    ran(kv, "p", context(0, 3), 1.0)
    ran(kv, "q", context(100, 3), 2.0)
    order = [block.key[0] for block in kv.victims(6, 3.0, INFINITE)]
    assert order == [8, 4, 0, 108, 104, 100]


def test_a_use_makes_a_context_the_most_recent() -> None:
    kv, _ = cache()
    ran(kv, "p", context(0, 2), 1.0)
    ran(kv, "q", context(100, 2), 2.0)
    ran(kv, "p", context(0, 2), 3.0)
    assert [block.key[0] for block in kv.victims(2, 4.0, INFINITE)] == [104, 100]


def test_the_lowest_value_goes_first_and_nothing_above_the_ceiling() -> None:
    kv, orders = cache()
    for number, program in enumerate("pqr"):
        ran(kv, program, context(100 * number, 2), float(number))
    orders.apply(retain("p", 8, 5.0))
    orders.apply(retain("q", 4, 1.0))
    assert [block.key[0] for block in kv.victims(9, 9.0, INFINITE)] == [104, 204, 200, 100, 4, 0]
    assert [block.key[0] for block in kv.victims(9, 9.0, 1.0)] == [104, 204, 200, 100]


def test_a_shared_block_is_worth_the_most_that_any_owner_makes_it_worth() -> None:
    kv, orders = cache()
    ran(kv, "p", context(0, 2), 1.0)
    ran(kv, "q", context(0, 2), 2.0)
    orders.apply(retain("p", 8, 3.0))
    orders.apply(retain("q", 4, 7.0))
    path = kv.match(block_keys(context(0, 2), BLOCK), 2, [])
    assert [kv.value(block, 0.0) for block in path] == [7.0, 3.0]


def test_what_a_running_call_uses_is_no_victim() -> None:
    kv, _ = cache()
    ran(kv, "p", context(0, 3), 1.0)
    keys = block_keys(context(0, 2), BLOCK)
    path = kv.match(keys, 2, [])
    kv.pin(path)
    assert kv.free_blocks + kv.idle_blocks == 14
    assert [block.key[0] for block in kv.victims(9, 2.0, INFINITE)] == [8]
    kv.unpin(path)
    assert len(kv.victims(9, 2.0, INFINITE)) == 3
    kv.check_invariants([])


def test_a_match_is_brought_up_to_date() -> None:
    kv, _ = cache()
    ran(kv, "p", context(0, 4), 1.0)
    keys = block_keys(context(0, 4), BLOCK)
    match = kv.match(keys, 4, [])
    kv.evict(kv.victims(2, 2.0, INFINITE), 2.0)
    assert len(kv.match(keys, 4, match)) == 2
    ran(kv, "p", context(0, 3), 3.0)
    assert len(kv.match(keys, 4, match)) == 3


def test_blocks_that_were_held_once_are_known_again() -> None:
    kv, _ = cache()
    ran(kv, "p", context(0, 2), 1.0)
    kv.evict(kv.victims(1, 2.0, INFINITE), 2.0)
    first, second = block_keys(context(0, 2), BLOCK)
    table = kv.open("p", [])
    kv.allocate(table, 2)
    assert not kv.fill(table, first), "this block was never let go"
    assert kv.fill(table, second)
    kv.check_invariants([table])


def test_the_memory_of_evicted_blocks_is_bounded() -> None:
    kv, _ = cache(num_blocks=1)
    for number in range(HISTORY_PER_BLOCK + 1):
        ran(kv, "p", context(number * BLOCK, 1), 1.0)
        kv.evict(kv.victims(1, 1.0, INFINITE), 1.0)
    table = kv.open("p", [])
    kv.allocate(table, 1)
    assert not kv.fill(table, block_keys(context(0, 1), BLOCK)[0])
    kv.release(table, 2.0)
    kv.evict(kv.victims(1, 1.0, INFINITE), 1.0)
    table = kv.open("p", [])
    kv.allocate(table, 1)
    assert kv.fill(table, block_keys(context(HISTORY_PER_BLOCK * BLOCK, 1), BLOCK)[0])


def test_a_block_forgets_its_oldest_owners() -> None:
    kv, _ = cache()
    for number in range(OWNERS_REMEMBERED + 1):
        ran(kv, f"p{number}", context(0, 2), 1.0)
    assert "p0" not in held(kv)
    assert held(kv)[f"p{OWNERS_REMEMBERED}"] == 2
    kv.check_invariants([])


def test_discarded_blocks_are_no_cache() -> None:
    kv, _ = cache()
    ran(kv, "p", context(0, 1), 1.0)
    running = opened(kv, "q", context(0, 2))
    kv.discard(opened(kv, "r", context(0, 4)), 2.0)
    assert cached(kv, context(0, 4)) == 2, "what another call uses stays"
    kv.discard(running, 3.0)
    assert kv.free_blocks == 16
    kv.check_invariants([])


def test_changes_are_told_once() -> None:
    kv, _ = cache()
    ran(kv, "p", context(0, 2), 1.0)
    changed, evicted = kv.take_changes()
    assert [(entry.program, entry.device_tokens) for entry in changed] == [("p", 8)]
    assert evicted == 0
    kv.evict(kv.victims(2, 1.0, INFINITE), 1.0)
    changed, evicted = kv.take_changes()
    assert [(entry.program, entry.device_tokens) for entry in changed] == [("p", 0)]
    assert evicted == 2
    assert kv.take_changes() == ((), 0)


@pytest.mark.parametrize(("num_blocks", "block_tokens"), [(0, 16), (16, 0)])
def test_an_empty_pool_is_refused(num_blocks: int, block_tokens: int) -> None:
    with pytest.raises(ValueError, match="blocks"):
        KvCache(num_blocks, block_tokens, StandingOrders())


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(0, 3)), max_size=20),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 16), st.integers(0, 3)), max_size=3),
)
def test_victims_are_what_evicting_one_at_a_time_gives(
    calls: list[tuple[int, int, int]], retained: list[tuple[int, int, int]]
) -> None:
    def made() -> KvCache:
        kv, orders = cache(num_blocks=200)
        for now, (program, blocks, branch) in enumerate(calls):
            tokens = [token + 1000 * branch * (token >= BLOCK) for token in context(0, blocks)]
            ran(kv, f"p{program}", tokens, float(now))
        for seq, (program, tokens_kept, value) in enumerate(retained):
            orders.apply(retain(f"p{program}", tokens_kept, float(value), seq))
        return kv

    together, alone = made(), made()
    order = [block.chain for block in together.victims(200, 99.0, INFINITE)]
    assert len(order) == together.idle_blocks
    one_by_one = []
    while victims := alone.victims(1, 99.0, INFINITE):
        one_by_one.append(victims[0].chain)
        alone.evict(victims, 99.0)
        alone.check_invariants([])
    assert order == one_by_one
    assert alone.free_blocks == 200
