"""Who computes what in the next step, and who gets room at whose expense.

A step is formed in this order:

1. **Decode first**: every call past its prefill gets one token, so output never waits for prompts.
2. **One chunk of prefill tokens**, shared by rank, then arrival: calls whose prefill has begun and the
   head of the queue compete anew for every chunk, so a long prefill keeps a more urgent call waiting for
   the rest of its chunk and no longer. Without orders all ranks are equal, so this is FCFS. The queue is
   strict: nobody overtakes a head that finds no room, else long prompts would starve.

Who gets room, and at whose expense:

* A call **starts** when its whole context, less what is cached on the device, finds room among free blocks
  and idle blocks worth no more than ``EngineTerms.device_price`` (lowest value first, then LRU, tail
  first). Idle blocks above the price are retained: a new call waits for them. Beyond its own blocks
  a start leaves one block for every running call, or the free floor if that is more; otherwise the
  next decode step would preempt what has just begun.
* A call of better rank that finds no room **displaces** a prefill that has much more left to compute than
  the call itself: that one goes back to the queue, and what it has computed stays as cache.
* **Stuck**: nothing runs and the head of the queue still cannot start. Then the lease worth least is
  broken, and reported, until it can. So retention delays calls, but cannot block an engine.
* A running call that **grows** may take any idle block, lowest value first, above the price too: what
  has been computed for it is lost if it cannot go on, and running calls are what frees blocks.
* When nothing is idle, the running call of the highest rank (of these the one that came last) is
  **preempted**: it gives its blocks up, keeps its output, and goes back to its place in the queue; what
  is evicted meanwhile is computed again. The best call never is, so some call always ends.
* A **prefetch** takes free blocks, and idle ones worth no more than what it brings, above what starts leave.

Affinity: where the core gave equal ranks, the call with most of its context on the device goes first, so
calls that share a prefix go together while it is there. A call is overtaken so a few times at most. Calls
without a rank keep their order of arrival.
"""

from __future__ import annotations

from bisect import insort
from itertools import islice, takewhile

from agentsched.core.decisions import Prefetch
from agentsched.core.standing import StandingOrders
from agentsched.engines.calls import Call, Tally
from agentsched.engines.kv import KvCache
from agentsched.engines.prefix import Block
from agentsched.engines.promotion import Promotion

AFFINITY_LOOKS_AT = 16
"""Calls from the head of the queue on among which affinity chooses."""

LONGER = 2
"""A prefill with so many times as much to compute is displaced. With less to gain it is not worth what the
displaced call may have to compute again."""

OVERTAKEN_AT_MOST = 8
"""As often a head of the queue lets others go first for affinity; so nobody starves."""


class Schedule:
    """The queue, the calls that run, and the room that they share."""

    def __init__(
        self,
        kv: KvCache,
        orders: StandingOrders,
        promotion: Promotion,
        *,
        chunk_tokens: int,
        max_running: int,
    ) -> None:
        self.queue: list[Call] = []
        self.running: list[Call] = []
        self.tally = Tally()
        self._kv = kv
        self._orders = orders
        self._promotion = promotion
        self._chunk_tokens = chunk_tokens
        self._max_running = max_running

    def turn(self, call: Call) -> tuple[float, int]:
        """Least goes first."""
        return (self._rank(call), call.arrival)

    def _rank(self, call: Call) -> float:
        return self._orders.rank(call.request.program)

    def add(self, call: Call) -> None:
        insort(self.queue, call, key=self.turn)

    def reorder(self) -> None:
        """Ranks have changed."""
        self.queue.sort(key=self.turn)

    # A step

    def batch(self, now: float) -> tuple[list[tuple[Call, int]], list[Call]]:
        """Which calls compute how many tokens, and which of them run for the first time."""
        preempted = len(self.tally.preempted)
        self._grow(now)
        arrived = self._kv.transit.arrived
        ready = [call for call in self.running if call.arrives <= arrived]
        batch = [(call, 1) for call in ready if call.decoding]
        prefilling = sorted((call for call in ready if not call.decoding), key=self.turn, reverse=True)
        budget = self._orders.chunk_tokens(self._chunk_tokens)
        admitting = len(self.tally.preempted) == preempted
        began: list[Call] = []
        while budget:
            head = self._next_in_line() if admitting and self.queue else None
            if head and (not prefilling or self.turn(head) < self.turn(prefilling[-1])):
                admitting = self._start(head, now)
                if not admitting:
                    continue
                prefilling = [call for call in prefilling if call.table is not None]
                if not head.started:
                    head.started, head.cached_tokens = True, head.computed
                    began.append(head)
                if head.arrives > arrived:
                    continue
                call = head
            elif prefilling:
                call = prefilling.pop()
            else:
                break
            count = min(budget, len(call.context) - call.computed)
            budget -= count
            batch.append((call, count))
        return batch, began

    def _next_in_line(self) -> Call:
        head = self.queue[0]
        if head.overtaken >= OVERTAKEN_AT_MOST or not self._orders.ranked(head.request.program):
            return head
        rank = self._rank(head)
        tied = takewhile(
            lambda call: self._rank(call) == rank and self._orders.ranked(call.request.program),
            islice(self.queue, AFFINITY_LOOKS_AT),
        )
        # Of equals the first: max is stable.
        return max(tied, key=lambda call: self._kv.on_device(self._match(call)))

    def _match(self, call: Call) -> list[Block]:
        # The last token is always computed: its logits give the next one.
        full = (len(call.context) - 1) // self._kv.block_tokens
        return self._kv.match(call.keys.of(call.context), full, call.match)

    def _grow(self, now: float) -> None:
        """Give decoding calls the block that their next token needs: evict, then preempt."""
        kv = self._kv
        growing = [
            call
            for call in self.running
            if call.decoding and call.table and len(call.context) > len(call.table.blocks) * kv.block_tokens
        ]
        for call in sorted(growing, key=self.turn):
            while call.table is not None:
                if not kv.free_blocks:
                    kv.evict(kv.victims(1, now, float("inf")), now)
                if kv.free_blocks:
                    kv.allocate(call.table, 1)
                    break
                self._preempt(max(self.running, key=self.turn), now)

    def _preempt(self, call: Call, now: float) -> None:
        assert call.table is not None
        self._kv.release(call.table, now)
        call.table, call.computed, call.decoding, call.arrives = None, 0, False, 0
        self.running.remove(call)
        self.add(call)
        self.tally.preempted.append(call.request.program)

    def _start(self, call: Call, now: float) -> bool:
        """Give a queued call its blocks, if there is room; the module says by what right."""
        kv = self._kv
        path = self._match(call)
        device, found = kv.on_device(path), len(path)
        if found > device and not self._promotion.pays(found - device, len(self.running), now):
            path = path[:device]
        fresh = kv.blocks_for(len(call.context)) - device
        kv.pin(path)
        if not self._make_room(call, fresh, now):
            kv.unpin(path)
            return False
        place = self.queue.index(call)
        for other in self.queue[:place]:
            other.overtaken += 1
        del self.queue[place]
        self.running.append(call)
        if len(path) > device:
            kv.promote(path)
        call.table, call.match = kv.open(call.request.program, path), []
        kv.allocate(call.table, fresh - (len(path) - device))
        call.computed = len(path) * kv.block_tokens
        call.found = found
        call.arrives = max((block.arrives for block in path), default=0)
        return True

    def _make_room(self, call: Call, fresh: int, now: float) -> bool:
        """Free the blocks that a call needs to start. What it shares with others is pinned."""
        if self._has_room(fresh) and self._clear(fresh, now):
            return True
        for longer in self._longer_prefills(call, fresh):
            assert longer.table is not None
            unused = len(longer.table.blocks) - len(longer.table.path)
            if self._has_room(fresh, unused, 1):
                self._preempt(longer, now)
                return self._clear(fresh, now)
        return False

    def _longer_prefills(self, call: Call, fresh: int) -> list[Call]:
        """Running prefills of worse rank that have much more left to compute, and so enough blocks that
        they do not use yet; worst first."""
        rank, least = self._rank(call), LONGER * fresh * self._kv.block_tokens
        return sorted(
            (
                other
                for other in self.running
                if not other.decoding
                and self._rank(other) > rank
                and len(other.context) - other.computed >= least
            ),
            key=self.turn,
            reverse=True,
        )

    def _has_room(self, fresh: int, more_blocks: int = 0, fewer_running: int = 0) -> bool:
        running = len(self.running) - fewer_running
        if running >= self._orders.max_running(self._max_running):
            return False
        return self._kv.free_blocks + self._kv.idle_blocks + more_blocks >= fresh + self._headroom(running)

    def _headroom(self, running: int) -> int:
        floor = self._kv.blocks_for(self._orders.free_floor_tokens)
        return max(running, floor) if running else 0

    def _clear(self, blocks: int, now: float) -> bool:
        """Evict for a new call until so many blocks are free; breaks leases only when stuck."""
        kv = self._kv
        price = self._orders.device_price
        while (short := blocks - kv.free_blocks) > 0:
            victims = kv.victims(short, now, price)
            if len(victims) == short:
                kv.evict(victims, now)
            elif self.running or self._promotion.on_the_way:
                return False
            else:
                program = self._orders.break_lease(now)
                assert program is not None, "nothing runs and nothing is retained, yet there is no room"
                self.tally.broken_leases.append(program)
        return True

    # Ahead of calls

    def prefetch(self, now: float) -> None:
        """Carry open prefetch orders out, the most urgent first, as far as there is room. One that finds
        too little is tried again until its time, and those behind it wait."""
        for order in self._orders.prefetches():
            if not self._bring(order, now) and now < order.by_s:
                return
            self._orders.prefetched(order.program)

    def _bring(self, order: Prefetch, now: float) -> bool:
        """Whether all that is in host memory is on its way."""
        kv = self._kv
        path = kv.latest_path(order.program)
        device = kv.on_device(path)
        if device == len(path):
            return True
        kv.pin(path)
        room = kv.free_blocks + kv.idle_blocks - self._headroom(len(self.running))
        coming = max(0, min(len(path) - device, room))
        ceiling = min(self._orders.device_price, kv.value(path[device], now))
        kv.evict(kv.victims(coming - kv.free_blocks, now, ceiling), now)
        coming = min(coming, kv.free_blocks)
        if coming:
            kv.promote(path[: device + coming])
        kv.unpin(path)
        return device + coming == len(path)
