"""What the nodes of a radix tree are worth: who owns which, by standing orders, at any time.

A node is a run of tokens at a fixed place of the contexts that go through it. Its owners are the programs of
whose calls it is a part; who owns a node owns all above it. A node's worth may change along its tokens where
an owner's order says so: it falls into pieces there, at whole pages, and the last piece goes first.

Knows nothing of SGLang: nodes are numbers, and the tree tells what becomes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import Held
from agentsched.core.standing import StandingOrders
from agentsched.engines.holdings import Holdings
from agentsched.engines.sglang.recomputing import Lost

Priority = tuple[float, float]

TICK_S = 0.02
"""What is held back is looked up so often at least, since worth changes with time alone; as of the beginning
of a tick, so that when it was asked last makes no difference."""


@dataclass(slots=True)
class Node:
    """The tokens ``[start, start + tokens)`` of its owners' contexts."""

    start: int
    tokens: int
    owners: dict[str, None] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.start + self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Of a ``StepReport`` what is known here."""

    held: tuple[Held, ...]
    evicted_tokens: int
    recomputed_tokens: int
    broken_leases: tuple[str, ...]


class Retained:
    """The owned nodes of one tree, and the orders that hold for it. Times are monotonic seconds."""

    def __init__(self, page_tokens: int) -> None:
        self.orders = StandingOrders()
        self._page_tokens = page_tokens
        self._nodes: dict[int, Node] = {}
        self._holdings = Holdings(1)
        self._evicted_tokens = self._recomputed_tokens = 0
        self._lost = Lost()
        self._broken: list[str] = []
        self._held_back: list[tuple[int, int]] = []
        self._looked_s = float("-inf")

    # What the tree tells

    def reach(self, program: str, path: Sequence[tuple[int, int]]) -> None:
        """A call of the program ends here: numbers and tokens of the nodes from the root on."""
        start = 0
        for number, tokens in path:
            node = self._nodes.get(number)
            if node is None:
                node = self._nodes[number] = Node(start, tokens)
            assert (node.start, node.tokens) == (start, tokens), f"node {number} is not where it was"
            if program not in node.owners:
                node.owners[program] = None
                self._holdings.count(program, device=tokens)
            start += tokens
        self._changed()

    def split(self, head: int, tail: int, head_tokens: int) -> None:
        """A node's first tokens are a node of their own now; the rest keeps its number."""
        node = self._nodes.get(tail)
        if node is None:
            return
        self._nodes[head] = Node(node.start, head_tokens, dict(node.owners))
        node.start += head_tokens
        node.tokens -= head_tokens
        self._changed()

    def gone(self, number: int, tokens: int, last: Sequence[int] = ()) -> None:
        """A node was evicted, owned or not. ``last``: its last tokens (``recomputing.LAST_TOKENS``)."""
        self._evicted_tokens += tokens
        node = self._nodes.pop(number, None)
        if node is None:
            return
        for program in node.owners:
            self._holdings.count(program, device=-node.tokens)
            if last:
                self._lost.note(program, node.start, node.end, last)
        self._changed()

    def computed(self, program: str, context: Sequence[int], start: int, count: int) -> None:
        """So many tokens of a program's context were prefilled, from ``start`` on."""
        self._recomputed_tokens += self._lost.recomputed(program, context, start, start + count)

    def clear(self) -> None:
        """The tree is empty."""
        for number in list(self._nodes):
            self.gone(number, 0)

    # Orders

    def apply(self, orders: Sequence[EngineOrder]) -> None:
        """Take orders. Idempotent; what is older than what is known is ignored."""
        for order in orders:
            self.orders.apply(order)
        self._changed()

    def expire(self, now: float) -> None:
        """Drop orders that are over."""
        self.orders.expire(now)

    def break_lease(self, now: float) -> str | None:
        """Nothing can go on: end the lease worth least, and say whose it was."""
        program = self.orders.break_lease(now)
        if program is not None:
            self._broken.append(program)
            self._changed()
        return program

    # What follows

    def priority(self, number: int, last_used: float, now: float) -> Priority:
        """Sort key of a leaf that may be evicted, least first: by the worth of its last page, then by
        recency. Where nothing is ordered that is recency alone."""
        node = self._nodes.get(number)
        if node is None or not self.orders.retained():
            return (0.0, last_used)
        return (self._worth(node, node.end, now), last_used)

    def tail_tokens(self, number: int, wanted: int, now: float) -> int | None:
        """How much of a leaf to evict at its end, in whole pages, where so many tokens are ``wanted``; None:
        all of it. A leaf that is worth nothing goes as a whole, as it would without us."""
        node = self._nodes.get(number)
        if node is None or not self.orders.retained():
            return None
        begin = max((cut for cut in self._cuts(node)), default=node.start)
        if begin == node.start and self._worth(node, node.end, now) == 0.0:
            return None
        page = self._page_tokens
        cut = min(node.end - begin, max(1, -(-wanted // page)) * page)
        return None if cut >= node.tokens else cut

    def held_back(self, now: float) -> list[tuple[int, int]]:
        """Numbers of the nodes worth more than new calls may take, and how many tokens of each."""
        if not self.orders.retained():
            return []
        tick_s = now // TICK_S * TICK_S
        if tick_s != self._looked_s:
            self._looked_s = tick_s
            price = self.orders.device_price
            self._held_back = [
                (number, tokens)
                for number, node in self._nodes.items()
                if (tokens := self._tokens_above(price, node, tick_s))
            ]
        return self._held_back

    def take_changes(self, *, all_held: bool) -> Changes:
        """What has changed since this was asked last; with ``all_held`` of all programs what they hold."""
        changed = self._holdings.take_changes()
        changes = Changes(
            held=self._holdings.all() if all_held else changed,
            evicted_tokens=self._evicted_tokens,
            recomputed_tokens=self._recomputed_tokens,
            broken_leases=tuple(self._broken),
        )
        self._evicted_tokens = self._recomputed_tokens = 0
        self._broken = []
        return changes

    def check_invariants(self, tree: Iterator[tuple[int, int, int]]) -> None:
        """Number, start and tokens of all nodes that the tree has. Raises AssertionError."""
        places = {number: (start, tokens) for number, start, tokens in tree}
        held: dict[str, int] = {}
        for number, node in self._nodes.items():
            assert places.get(number) == (node.start, node.tokens), f"node {number} is not in the tree so"
            for program in node.owners:
                held[program] = held.get(program, 0) + node.tokens
        assert held == self._holdings.device, "what programs hold is miscounted"

    def _changed(self) -> None:
        self._looked_s = float("-inf")

    def _worth(self, node: Node, end: int, now: float) -> float:
        """Of the page that ends there: the most that any owner's order makes it worth."""
        token = max(node.start, end - self._page_tokens)
        return max((self.orders.device_value(owner, token, now) for owner in node.owners), default=0.0)

    def _cuts(self, node: Node) -> list[int]:
        """Where in the node, at whole pages, its worth may change."""
        page = self._page_tokens
        edges = {edge for owner in node.owners for edge in self.orders.segment_edges(owner)}
        cuts = {-(-edge // page) * page for edge in edges}
        return sorted(cut for cut in cuts if node.start < cut < node.end)

    def _tokens_above(self, price: float, node: Node, now: float) -> int:
        kept = 0
        for end in (*self._cuts(node), node.end):
            if self._worth(node, end, now) <= price:
                break
            kept = end - node.start
        return kept
