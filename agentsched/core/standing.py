"""Standing orders, as an engine carries them out: pure, and shared by all engines.

The core decides at the rate of program events; an engine must evict and form batches inside a step
with no call out. So the core gives orders that hold until they are replaced or their lease ends,
and this module answers the engine's questions from them:

* what a token of a program's context is worth now, on device and in host memory;
* in which order programs are batched, and preempted;
* which of several evictable blocks goes first.

The rules that keep this safe:

1. With no order at all every value is 0, every rank equal and every tie broken by recency or
   arrival: exactly stock LRU and FCFS. A dead core leaves a stock engine behind, since leases end.
2. Orders are idempotent. One with an older (epoch, seq) than the newest of its kind for its
   program is ignored, so orders may be sent twice, or late. A newer epoch supersedes all older.
3. A block shared by several programs is worth the most that any of them makes it worth.
4. Nothing here reads a clock: ``now`` (monotonic seconds) comes with every question.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, assert_never

from agentsched.core.decisions import (
    YIELDS,
    EngineOrder,
    EngineTerms,
    Prefetch,
    Rank,
    Release,
    Retain,
    Segment,
    Worth,
)

VictimKey = tuple[float, float, int]

REMEMBERED = 100_000
"""Past this, the number of the order that was renewed least recently is forgotten."""


def worth_at(steps: Iterable[Worth], now: float) -> float:
    """The step function's value at ``now``; 0 past its last step."""
    return next((step.value for step in steps if now < step.until_s), 0.0)


def victim_key(value: float, end_tokens: int, last_used: float) -> VictimKey:
    """Sort key of an evictable block, least first: lowest value, then longest unused, then tail first.

    ``end_tokens`` is the block's end in its context. All blocks of a context are touched together
    (same ``last_used``), so within a context the tail goes before the head.
    """
    return (value, last_used, -end_tokens)


class StandingOrders:
    """The orders that hold in one engine. Mutated only by ``apply``, ``break_lease`` and ``expire``."""

    def __init__(self) -> None:
        self.epoch = 0
        self.terms: EngineTerms | None = None
        self._retain: dict[str, Retain] = {}
        self._rank: dict[str, Rank] = {}
        self._prefetch: dict[str, Prefetch] = {}
        self._newest: dict[tuple[str, str], int] = {}

    def apply(self, order: EngineOrder) -> bool:
        """Take an order; False if it is a repetition or older than what is known."""
        if order.epoch < self.epoch:
            return False
        if order.epoch > self.epoch:
            self._supersede(order.epoch)
        match order:
            case EngineTerms():
                changed = self._newer(order, "terms", "")
                self.terms = order if changed else self.terms
            case Rank():
                if changed := self._newer(order, "rank", order.program):
                    self._rank[order.program] = order
            case Retain():
                if changed := self._newer(order, "retain", order.program):
                    self._retain[order.program] = order
            case Prefetch():
                if changed := self._newer(order, "prefetch", order.program):
                    self._prefetch[order.program] = order
            case Release():
                changed = self._release(order)
            case _:
                assert_never(order)
        return changed

    def _release(self, order: Release) -> bool:
        changed = False
        kinds: dict[str, dict[str, Any]] = {
            "rank": self._rank,
            "retain": self._retain,
            "prefetch": self._prefetch,
        }
        for kind, orders in kinds.items():
            if self._newer(order, kind, order.program):
                orders.pop(order.program, None)
                changed = True
        return changed

    def _newer(self, order: EngineOrder, kind: str, program: str) -> bool:
        """Whether the order is the newest of its kind for the program; remembered if so."""
        if order.seq <= self._newest.get((kind, program), -1):
            return False
        self._newest.pop((kind, program), None)
        if len(self._newest) >= REMEMBERED:
            del self._newest[next(iter(self._newest))]
        self._newest[kind, program] = order.seq
        return True

    def _supersede(self, epoch: int) -> None:
        self.epoch, self.terms = epoch, None
        for orders in (self._retain, self._rank, self._prefetch, self._newest):
            orders.clear()

    @property
    def device_price(self) -> float:
        """Blocks worth no more than this are evicted for new calls."""
        return self.terms.device_price if self.terms else YIELDS

    @property
    def host_price(self) -> float:
        """Blocks worth less than this are not kept in host memory."""
        return self.terms.host_price if self.terms else 0.0

    @property
    def free_floor_tokens(self) -> int:
        """Tokens that new calls have to leave free."""
        return self.terms.free_floor_tokens if self.terms else 0

    def chunk_tokens(self, own: int) -> int:
        """Tokens that a step may prefill; ``own``: where the terms do not say."""
        said = self.terms.chunk_tokens if self.terms else None
        return own if said is None else max(1, said)

    def max_running(self, own: int) -> int:
        """Calls in a batch, never more than the engine's ``own`` limit."""
        said = self.terms.max_running if self.terms else None
        return own if said is None else min(own, max(1, said))

    def rank(self, program: str) -> float:
        """The program's batch order; lower goes first. 0 without an order."""
        order = self._rank.get(program)
        return order.key if order else 0.0

    def ranked(self, program: str) -> bool:
        """Whether the core has given the program a rank."""
        return program in self._rank

    def device_value(self, program: str, token: int, now: float) -> float:
        """What keeping token number ``token`` of the program's context on the device is worth."""
        segment = self._segment(program, token, now)
        return worth_at(segment.device, now) if segment else 0.0

    def host_value(self, program: str, token: int, now: float) -> float:
        """The same for host memory."""
        segment = self._segment(program, token, now)
        return worth_at(segment.host, now) if segment else 0.0

    def worth_until(self, program: str, above: float, now: float) -> float:
        """Until when the head of the program's context is worth more than ``above`` on the device, without a
        break from ``now`` on; ``now`` if it is not."""
        segment = self._segment(program, 0, now)
        if segment is None:
            return now
        until_s = now
        for step in segment.device:
            if step.until_s <= now:
                continue
            if step.value <= above:
                break
            until_s = step.until_s
        return min(until_s, self._retain[program].lease_until_s)

    def _segment(self, program: str, token: int, now: float) -> Segment | None:
        order = self._retain.get(program)
        if order is None or now >= order.lease_until_s:
            return None
        return next((s for s in order.segments if s.start_tokens <= token < s.end_tokens), None)

    def segment_starts(self, program: str) -> tuple[int, ...]:
        """The tokens of the program's context at which its worth may change."""
        order = self._retain.get(program)
        return tuple(segment.start_tokens for segment in order.segments) if order else ()

    def segment_edges(self, program: str) -> set[int]:
        """The same, with the tokens past the end of what is ordered for."""
        order = self._retain.get(program)
        if order is None:
            return set()
        return {edge for segment in order.segments for edge in (segment.start_tokens, segment.end_tokens)}

    def retained(self) -> bool:
        """Whether any program's KV may be worth something."""
        return bool(self._retain)

    def prefetches(self) -> list[Prefetch]:
        """Open prefetch orders, most urgent first."""
        return sorted(self._prefetch.values(), key=lambda order: (order.by_s, order.program))

    def prefetched(self, program: str) -> None:
        """The engine carried a prefetch out."""
        self._prefetch.pop(program, None)

    def break_lease(self, now: float) -> str | None:
        """The engine is stuck: end the lease worth least now, and say whose it was."""
        held = [
            (self.device_value(name, order.segments[0].start_tokens, now), -order.seq, name)
            for name, order in self._retain.items()
            if order.segments and now < order.lease_until_s
        ]
        if not held:
            return None
        program = min(held)[2]
        del self._retain[program]
        return program

    def expire(self, now: float) -> None:
        """Drop orders whose lease is over (they are worth 0 already; this frees memory)."""
        for program in [p for p, order in self._retain.items() if now >= order.lease_until_s]:
            del self._retain[program]
