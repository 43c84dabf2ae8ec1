"""What is held for whom, from KV events."""

from __future__ import annotations

import random

from agentsched.engines.upstream.kv_ledger import KvLedger


def chain(ledger: KvLedger, session: str | None, blocks: list[int], parent: int | None = None) -> None:
    ledger.stored(blocks, parent, 16, session)


def test_what_a_session_stored_is_held_for_it() -> None:
    ledger = KvLedger()
    chain(ledger, "p", [1, 2, 3])
    chain(ledger, "p", [4], parent=3)
    assert (ledger.held("p"), ledger.tokens) == (64, 64)
    assert dict(ledger.changes()) == {"p": 64}
    assert dict(ledger.changes()) == {}


def test_a_shared_beginning_counts_for_each_of_its_owners() -> None:
    ledger = KvLedger()
    chain(ledger, "p", [1, 2, 3])
    chain(ledger, "q", [10, 11], parent=2)
    assert (ledger.held("p"), ledger.held("q"), ledger.tokens) == (48, 64, 80)
    ledger.removed([3])
    assert (ledger.held("p"), ledger.held("q")) == (32, 64)


def test_tails_go_before_heads_and_both_owners_hear_of_it() -> None:
    ledger = KvLedger()
    chain(ledger, "p", [1, 2, 3])
    chain(ledger, "q", [10], parent=3)
    dict(ledger.changes())
    ledger.removed([10, 3])
    assert dict(ledger.changes()) == {"p": 32, "q": 32}
    assert ledger.evicted_tokens == 32
    ledger.removed([2, 1])
    assert dict(ledger.changes()) == {"p": 0, "q": 0}
    assert ledger.tokens == 0


def test_what_stands_behind_a_lost_block_of_its_run_cannot_be_found() -> None:
    ledger = KvLedger()
    chain(ledger, "p", [1, 2, 3])
    ledger.removed([2])
    assert (ledger.held("p"), ledger.tokens) == (16, 32)
    chain(ledger, "p", [2, 3], parent=1)
    assert (ledger.held("p"), ledger.tokens) == (48, 48)


def test_blocks_that_are_there_already_become_the_sessions_too() -> None:
    """As vLLM tells it of what was found in the cache."""
    ledger = KvLedger()
    chain(ledger, "p", [1, 2, 3])
    chain(ledger, "q", [1, 2])
    assert (ledger.held("q"), ledger.tokens) == (32, 48)
    chain(ledger, None, [7])
    assert ledger.tokens == 64


def test_what_was_stored_before_anybody_listened_is_not_known() -> None:
    ledger = KvLedger()
    ledger.removed([99])
    chain(ledger, "p", [5], parent=99)
    assert (ledger.held("p"), ledger.evicted_tokens) == (16, 0)


def test_all_is_forgotten_when_all_is_cleared() -> None:
    ledger = KvLedger()
    chain(ledger, "p", [1, 2, 3])
    dict(ledger.changes())
    ledger.cleared()
    assert dict(ledger.changes()) == {"p": 0}
    assert (ledger.held("p"), ledger.tokens) == (0, 0)


def test_it_agrees_with_a_tree_that_is_walked_at_each_question() -> None:
    """Contexts that grow, fork and lose their tails, at random."""
    rng = random.Random(7)
    ledger = KvLedger()
    parents: dict[int, int | None] = {}
    alive: dict[int, bool] = {}
    owners: dict[int, set[str]] = {}
    ends: dict[str, int] = {}
    for block in range(400):
        session = f"s{rng.randrange(12)}"
        if rng.random() < 0.35 and any(alive.values()):
            leaves = [b for b in alive if not any(alive.get(c) and parents[c] == b for c in alive)]
            lost = rng.choice(leaves)
            ledger.removed([lost])
            del alive[lost]
            ends = {name: end for name, end in ends.items() if end in alive}
        at = ends.get(session) if rng.random() < 0.8 else rng.choice([None, *alive])
        ledger.stored([block], at, 16, session)
        parents[block], alive[block], owners[block], ends[session] = at, True, set(), block
        up: int | None = block
        while up is not None:
            owners[up].add(session)
            up = parents[up]
        if block % 20 == 0:
            for name in {f"s{i}" for i in range(12)}:
                assert ledger.held(name) == 16 * sum(name in owners[b] for b in alive)
            assert ledger.tokens == 16 * len(alive)
