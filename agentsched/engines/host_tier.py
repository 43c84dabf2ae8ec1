"""The host tier: what an engine asks of the memory behind its device, and which block lies where in it.

The tier is exclusive: KV is on the device or in host memory. What is evicted from the device goes down to a
slot of host memory if it is worth keeping there (**demotion**), and what a call finds there comes up
again (**promotion**). ``HostTier`` copies; ``HostSlots`` keeps the slots' books; the tree that says what
they hold is in ``kv.py``, and when KV comes up is decided in ``promotion.py``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from agentsched.core.standing import victim_key
from agentsched.engines.prefix import NOWHERE, Block


class Move(NamedTuple):
    """A block's way: from a device block to a host slot, or from a host slot to a device block."""

    source: int
    target: int


class HostTier(Protocol):
    """Copies blocks between device and host memory. Belongs to one engine, which drives it.

    Copying may take its time, but what is asked for later finds what was asked for earlier done: the
    engine takes a demoted block for free at once and a demoted slot for written. Only whether a promoted
    block may be read is asked, by ``promoted``. A slot that is being promoted, and the device block that it
    goes to, are left alone by the engine until then.
    """

    @property
    def blocks(self) -> int:
        """How many slots there are."""
        ...

    @property
    def tokens_per_s(self) -> float:
        """How fast KV comes up."""
        ...

    def demote(self, moves: Sequence[Move]) -> None:
        """Save device blocks in host slots; what a slot held before is lost."""
        ...

    def promote(self, moves: Sequence[Move], now: float) -> None:
        """Begin to bring host slots up to device blocks, after all that are on their way already."""
        ...

    def promoted(self, now: float) -> int:
        """How many promotions have ended by now, of all there ever were; they end in their order."""
        ...

    def make_way(self, blocks: Iterable[int]) -> None:
        """These device blocks are about to be overwritten: what was demoted from them must be saved."""
        ...

    def load_s(self, blocks: int, now: float) -> float:
        """In how many seconds so many blocks would have come up, if they were promoted now."""
        ...

    def wait(self, now: float) -> float:
        """Nothing can be computed before a promotion ends: help it on. Returns the seconds that passed, or
        that are to pass where time is virtual; the next promotion need not have ended then."""
        ...


class HostSlots:
    """Which slots are free, and which blocks are leaves there: without children and unreferenced.

    ``worth`` says what keeping a block in host memory is worth at a time.
    """

    def __init__(self, count: int, worth: Callable[[Block, float], float]) -> None:
        self.count = count
        self.free = list(range(count))
        self.leaves: dict[Block, None] = {}
        self.worth = worth

    def give_back(self, slot: int) -> None:
        heapq.heappush(self.free, slot)

    def file(self, block: Block) -> None:
        """Note whether the block is a leaf; called when what decides that has changed."""
        if block.slot != NOWHERE and not block.children and not block.references:
            self.leaves[block] = None
        else:
            self.leaves.pop(block, None)


class HostRoom:
    """Finds slots for blocks that leave the device at ``now``; lives for one round of evictions.

    A block takes a free slot, else that of the leaf worth least, if that is not worth more than itself:
    what comes down was used after all that is there. The head of a context may so take its own tail's.
    """

    def __init__(self, slots: HostSlots, price: float, now: float) -> None:
        self._slots, self._price, self._now = slots, price, now
        self._heap: list[tuple[tuple[float, float, int], int, Block]] | None = None
        self._ties = 0

    def slot_for(self, block: Block, drop: Callable[[Block], None]) -> int | None:
        """A slot, or None if the block is not to be kept. ``drop`` takes a leaf out of the tree, and gives
        its slot back."""
        slots = self._slots
        if not slots.count or (value := slots.worth(block, self._now)) < self._price:
            return None
        if not slots.free:
            leaf = self._least(value)
            if leaf is None:
                return None
            drop(leaf)
            if leaf.parent in slots.leaves:
                self._add(leaf.parent)
        return heapq.heappop(slots.free)

    def came(self, block: Block) -> None:
        """A block has come down; it may have to make way for the next one."""
        if self._heap is not None and block in self._slots.leaves:
            self._add(block)

    def _least(self, ceiling: float) -> Block | None:
        """Take out the leaf worth least, if it is worth no more than ``ceiling``."""
        if self._heap is None:
            self._heap = []
            for leaf in self._slots.leaves:
                self._add(leaf)
        while self._heap and self._heap[0][2] not in self._slots.leaves:
            heapq.heappop(self._heap)
        if not self._heap or self._heap[0][0][0] > ceiling:
            return None
        return heapq.heappop(self._heap)[2]

    def _add(self, leaf: Block) -> None:
        assert self._heap is not None
        self._ties += 1
        key = victim_key(self._slots.worth(leaf, self._now), leaf.start_tokens, leaf.last_used)
        heapq.heappush(self._heap, (key, self._ties, leaf))
