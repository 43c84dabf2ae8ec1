"""What nodes of a radix tree are worth, by the orders of the programs that own them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core.decisions import YIELDS, EngineTerms, Release, Retain, Segment, Worth
from agentsched.core.events import Held
from agentsched.engines.sglang.retained import Retained

PAGE = 16


def retain(program: str, *segments: tuple[int, int, float], until_s: float = 100.0, seq: int = 1) -> Retain:
    """Segments as start, end and value."""
    return Retain(
        program=program,
        engine="e",
        cause=1,
        epoch=1,
        seq=seq,
        segments=tuple(
            Segment(start_tokens=start, end_tokens=end, device=(Worth(until_s=until_s, value=value),))
            for start, end, value in segments
        ),
        lease_until_s=until_s,
    )


def released(program: str, seq: int = 2) -> Release:
    return Release(program=program, engine="e", cause=1, epoch=1, seq=seq)


def owned(program: str = "p", tokens: int = 160, page: int = PAGE) -> Retained:
    """A tree with one context in one node, number 1."""
    retained = Retained(page)
    retained.reach(program, [(1, tokens)])
    return retained


def test_without_orders_only_recency_counts_and_leaves_go_as_wholes() -> None:
    retained = owned()
    assert retained.priority(1, 7.0, 0.0) == (0.0, 7.0)
    assert retained.priority(99, 7.0, 0.0) == (0.0, 7.0)
    assert retained.tail_tokens(1, 16, 0.0) is None
    assert retained.held_back(0.0) == []


def test_worth_is_the_most_of_any_owner_and_ends_with_its_lease() -> None:
    retained = owned()
    retained.reach("q", [(1, 160)])
    retained.apply([retain("p", (0, 160, 2.0)), retain("q", (0, 160, 3.0), until_s=50.0)])
    assert retained.priority(1, 7.0, 0.0) == (3.0, 7.0)
    assert retained.priority(1, 7.0, 50.0) == (2.0, 7.0)
    assert retained.priority(1, 7.0, 100.0) == (0.0, 7.0)


def test_a_release_makes_it_worth_nothing() -> None:
    retained = owned()
    retained.apply([retain("p", (0, 160, 2.0)), released("p")])
    assert retained.priority(1, 7.0, 0.0) == (0.0, 7.0)


def test_the_tail_goes_first_in_whole_pages_and_never_into_what_is_worth_more() -> None:
    retained = owned()
    retained.apply([retain("p", (0, 70, 2.0), (70, 160, 1.0))])
    assert retained.priority(1, 7.0, 0.0)[0] == 1.0
    assert retained.tail_tokens(1, 1, 0.0) == 16
    assert retained.tail_tokens(1, 17, 0.0) == 32
    assert retained.tail_tokens(1, 1000, 0.0) == 80, "the page with token 70 belongs to the head"


def test_what_lies_past_an_order_is_worth_nothing_and_goes_alone() -> None:
    retained = owned()
    retained.apply([retain("p", (0, 96, 2.0))])
    assert retained.priority(1, 7.0, 0.0)[0] == 0.0
    assert retained.tail_tokens(1, 1000, 0.0) == 64


def test_a_leaf_goes_as_a_whole_if_all_of_it_is_wanted() -> None:
    retained = owned()
    retained.apply([retain("p", (0, 160, 2.0))])
    assert retained.tail_tokens(1, 160, 0.0) is None


def test_what_is_worth_more_than_the_price_is_held_back_and_the_rest_is_not() -> None:
    retained = owned()
    retained.apply([retain("p", (0, 96, 2.0), (96, 160, YIELDS))])
    assert retained.held_back(0.0) == [(1, 96)]
    terms = EngineTerms(engine="e", cause=1, epoch=1, seq=5, device_price=2.0)
    retained.apply([terms])
    assert retained.held_back(0.0) == []
    assert retained.held_back(200.0) == []


def test_time_alone_ends_what_is_held_back() -> None:
    retained = owned()
    retained.apply([retain("p", (0, 160, 2.0), until_s=10.0)])
    assert retained.held_back(9.99) == [(1, 160)]
    assert retained.held_back(10.1) == []


def test_breaking_a_lease_takes_the_least_and_is_reported_once() -> None:
    retained = owned()
    retained.reach("q", [(2, 32)])
    retained.apply([retain("p", (0, 160, 2.0)), retain("q", (0, 32, 1.0))])
    assert retained.break_lease(0.0) == "q"
    assert retained.held_back(0.0) == [(1, 160)]
    assert retained.take_changes(all_held=False).broken_leases == ("q",)
    assert retained.take_changes(all_held=False).broken_leases == ()


def test_holdings_follow_splits_and_evictions() -> None:
    retained = owned()
    retained.split(2, 1, 64)
    retained.reach("q", [(2, 64), (3, 16)])
    assert retained.take_changes(all_held=False).held == (
        Held(program="p", device_tokens=160),
        Held(program="q", device_tokens=80),
    )
    retained.gone(1, 96)
    retained.gone(99, 40)
    changes = retained.take_changes(all_held=False)
    assert changes.held == (Held(program="p", device_tokens=64),)
    assert changes.evicted_tokens == 136
    assert retained.take_changes(all_held=True).held == (
        Held(program="p", device_tokens=64),
        Held(program="q", device_tokens=80),
    )
    retained.clear()
    assert retained.take_changes(all_held=True).held == ()


CONTEXT = list(range(1_000, 1_160))
"""The tokens of what ``owned`` holds."""


def recomputed(retained: Retained, start: int, context: list[int] = CONTEXT, program: str = "p") -> int:
    """Of a call that computes its context from there on."""
    retained.computed(program, context, start, len(context) - start)
    return retained.take_changes(all_held=False).recomputed_tokens


def test_what_was_evicted_and_is_computed_again_is_counted() -> None:
    retained = owned()
    assert recomputed(retained, 0) == 0, "it is there"
    retained.gone(1, 160, CONTEXT[-16:])
    longer = [*CONTEXT, *range(40)]
    assert recomputed(retained, 0, longer) == 160
    assert recomputed(retained, 100, longer) == 60, "of what is not cached"
    assert recomputed(retained, 160, longer) == 0
    retained.computed("p", longer, 0, 64)
    retained.computed("p", longer, 64, 136)
    assert retained.take_changes(all_held=False).recomputed_tokens == 160, "by chunks, each token once"


def test_a_context_that_went_piece_by_piece_was_there_up_to_its_end() -> None:
    retained, leaf = owned(), 1
    for end in (160, 112):
        retained.split(leaf + 1, leaf, end - 48)
        retained.gone(leaf, 48, CONTEXT[end - 16 : end])
        leaf += 1
    assert recomputed(retained, 64) == 96
    assert recomputed(retained, 128) == 32


def test_other_tokens_in_the_same_place_are_not_computed_again() -> None:
    retained = owned()
    retained.gone(1, 160, CONTEXT[-16:])
    assert recomputed(retained, 16, [*CONTEXT[:32], *range(200)]) == 0
    assert recomputed(retained, 0, program="q") == 0
    assert recomputed(retained, 0, CONTEXT[:100]) == 0


def test_both_parts_of_a_split_are_worth_what_they_were() -> None:
    retained = owned()
    retained.apply([retain("p", (0, 64, 2.0), (64, 160, 1.0))])
    retained.split(2, 1, 64)
    assert retained.priority(2, 7.0, 0.0)[0] == 2.0
    assert retained.priority(1, 7.0, 0.0)[0] == 1.0


@dataclass
class Tree:
    """A radix tree as SGLang's is: what it does is told to ``Retained``."""

    retained: Retained = field(default_factory=lambda: Retained(1))
    keys: dict[int, str] = field(default_factory=dict)
    parents: dict[int, int] = field(default_factory=dict)
    last: int = 0

    def insert(self, program: str, text: str) -> None:
        node, path = 0, []
        while text:
            child = next(
                (n for n, p in self.parents.items() if p == node and self.keys[n][0] == text[0]), None
            )
            if child is None:
                self.last += 1
                child, self.keys[self.last], self.parents[self.last] = self.last, text, node
            common = next(
                (i for i, (a, b) in enumerate(zip(self.keys[child], text, strict=False)) if a != b),
                min(len(self.keys[child]), len(text)),
            )
            if common < len(self.keys[child]):
                child = self.split(child, common)
            path.append((child, len(self.keys[child])))
            node, text = child, text[common:]
        self.retained.reach(program, path)

    def split(self, node: int, head_tokens: int) -> int:
        self.last += 1
        head = self.last
        self.keys[head], self.keys[node] = self.keys[node][:head_tokens], self.keys[node][head_tokens:]
        self.parents[head], self.parents[node] = self.parents[node], head
        self.retained.split(head, node, head_tokens)
        return head

    def evict(self, now: float, wanted: int) -> None:
        leaves = [node for node in self.keys if node not in self.parents.values()]
        leaf = min(leaves, key=lambda node: self.retained.priority(node, 0.0, now))
        tail = self.retained.tail_tokens(leaf, wanted, now)
        if tail is not None:
            self.split(leaf, len(self.keys[leaf]) - tail)
        self.retained.gone(leaf, len(self.keys[leaf]))
        del self.keys[leaf], self.parents[leaf]

    def places(self) -> Iterator[tuple[int, int, int]]:
        def start(node: int) -> int:
            parent = self.parents[node]
            return 0 if parent == 0 else start(parent) + len(self.keys[parent])

        return ((node, start(node), len(self.keys[node])) for node in self.keys)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("pqr"), st.text("ab", min_size=1, max_size=12)),
            st.tuples(st.sampled_from("pqr"), st.integers(1, 12), st.sampled_from([1.0, 2.0, 0.0])),
            st.integers(1, 6),
        ),
        max_size=40,
    )
)
def test_the_books_agree_with_the_tree_whatever_happens(steps: list[object]) -> None:
    tree = Tree()
    for number, step in enumerate(steps):
        match step:
            case (str(program), str(text)):
                tree.insert(program, text)
            case (str(program), int(end), float(value)):
                tree.retained.apply([retain(program, (0, end, value), seq=number)])
            case int(wanted) if tree.keys:
                tree.evict(0.0, wanted)
        tree.retained.check_invariants(tree.places())
        back = dict(tree.retained.held_back(0.0))
        sizes = {node: tokens for node, _, tokens in tree.places()}
        assert all(0 < tokens <= sizes[node] for node, tokens in back.items())


def test_a_node_that_moved_is_noticed() -> None:
    retained = owned()
    with pytest.raises(AssertionError, match="not where it was"):
        retained.reach("p", [(2, 16), (1, 160)])
