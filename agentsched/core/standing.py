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
from typing import assert_never

from agentsched.core.decisions import EngineOrder, EngineTerms, Prefetch, Rank, Release, Retain, Worth

VictimKey = tuple[float, float, int]
Stamp = tuple[int, int]


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
        self._newest: dict[tuple[str, str], Stamp] = {}

    def apply(self, order: EngineOrder) -> bool:
        """Take an order; False if it is a repetition or older than what is known."""
        if order.epoch < self.epoch:
            return False
        if order.epoch > self.epoch:
            self._supersede(order.epoch)
        stamp = (order.epoch, order.seq)
        program = "" if isinstance(order, EngineTerms) else order.program
        kind = "retain" if isinstance(order, Release) else type(order).__name__.lower()
        if stamp <= self._newest.get((kind, program), (-1, -1)):
            return False
        self._newest[kind, program] = stamp
        match order:
            case Rank():
                self._rank[program] = order
            case Retain():
                self._retain[program] = order
            case Prefetch():
                self._prefetch[program] = order
            case Release():
                self._retain.pop(program, None)
                self._prefetch.pop(program, None)
                self._rank.pop(program, None)
            case EngineTerms():
                self.terms = order
            case _:
                assert_never(order)
        return True

    def _supersede(self, epoch: int) -> None:
        self.epoch, self.terms = epoch, None
        for orders in (self._retain, self._rank, self._prefetch, self._newest):
            orders.clear()

    def rank(self, program: str) -> float:
        """The program's batch order; lower goes first. 0 without an order."""
        order = self._rank.get(program)
        return order.key if order else 0.0

    def device_value(self, program: str, token: int, now: float) -> float:
        """What keeping token number ``token`` of the program's context on the device is worth."""
        order = self._retain.get(program)
        if order is None or now >= order.lease_until_s:
            return 0.0
        for segment in order.segments:
            if segment.start_tokens <= token < segment.end_tokens:
                return worth_at(segment.device, now)
        return 0.0

    def host_value(self, program: str, token: int, now: float) -> float:
        """The same for host memory."""
        order = self._retain.get(program)
        if order is None or now >= order.lease_until_s:
            return 0.0
        for segment in order.segments:
            if segment.start_tokens <= token < segment.end_tokens:
                return worth_at(segment.host, now)
        return 0.0

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
