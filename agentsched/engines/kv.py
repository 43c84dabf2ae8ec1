"""Paged KV with a prefix cache: which block holds what, who uses it, and who goes first.

Device memory is a fixed number of blocks of ``block_tokens`` positions each. A block of it is in one
of three places at any time, and ``check_invariants`` says so:

* **free**: holds nothing;
* **private** to one running call: reserved for it, or not full yet;
* **cached**: full, and a node of the prefix tree. The way from the root to a node spells the
  tokens of a context, so equal prefixes of different calls and programs are one block.

Running calls count references on every cached block of their context, from the first to the last;
so a referenced block has only referenced ancestors, and all blocks below an idle one are idle.
Only idle leaves are evicted: a context loses its tail first and what is left of it is a prefix.

Where there is a host tier (``host_tier.py``), evicted blocks that are worth it stay in the tree, in a slot
of host memory; a context is then a prefix on the device, and after it a prefix of the rest in host memory.
A block that comes up again is reserved and counted on the device from the start. Until it has come, its
slot is in use, and the whole way to it is referenced, whether or not the call that wanted it lives on.

The tree holds one block a node, as vLLM's hash chain does, instead of compressed runs of tokens as
SGLang's radix tree does: no node is ever split, and eviction is exact to the block. The price
is a dictionary entry a block.

A block remembers the programs that used it (its owners), for their standing orders decide what it
is worth. Token ``i`` of a block's context is token ``i`` of every owner's context, since they share
all that goes before. Blocks of one context are given one ``last_used``, when their call ends.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from agentsched.core.events import Held
from agentsched.core.standing import StandingOrders, VictimKey, victim_key
from agentsched.engines.holdings import Holdings
from agentsched.engines.host_tier import HostRoom, HostSlots
from agentsched.engines.kv_check import check_references, check_tree
from agentsched.engines.prefix import NOWHERE, Block, Key, Table
from agentsched.engines.transit import Transit

OWNERS_REMEMBERED = 64
"""A block forgets all but its latest owners: a system prompt outlives thousands of programs."""

HISTORY_PER_BLOCK = 16
"""How many dropped blocks are remembered, for each block of the pool, to count recomputation."""


def _most(worth: Callable[[str, int, float], float], block: Block, now: float) -> float:
    return max((worth(program, block.start_tokens, now) for program in block.owners), default=0.0)


class KvCache:
    """The pool and its prefix tree. ``orders`` is only read: it says what a block is worth."""

    def __init__(
        self, num_blocks: int, block_tokens: int, orders: StandingOrders, *, host_blocks: int = 0
    ) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(f"KV needs blocks of tokens, got {num_blocks} blocks of {block_tokens} tokens")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.idle_blocks = 0
        """Cached blocks without a reference. Each can be evicted, though a leaf only at a time."""
        self.transit = Transit()
        self._orders = orders
        self._root = Block(NOWHERE, (), None, -block_tokens)
        # A heap, lowest first: what is allocated together tends to lie together.
        self._free = list(range(num_blocks))
        self._idle_leaves: dict[int, Block] = {}
        self._holdings = Holdings(block_tokens)
        self._evicted = 0
        self._let_go: dict[int, None] = {}
        self._host = HostSlots(host_blocks, self.host_value)

    # Questions

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks ``tokens`` positions take."""
        return -(-tokens // self.block_tokens)

    def match(self, keys: Sequence[Key], count: int, known: list[Block]) -> list[Block]:
        """The longest cached prefix of the context that the first ``count`` keys spell.

        ``known``, an earlier answer for the same context, is brought up to date and returned: a call
        that waits asks at every step. Changes nothing in the cache, recency included.
        """
        while known and not known[-1].cached:
            known.pop()
        block = known[-1] if known else self._root
        while len(known) < count:
            child = block.children.get(keys[len(known)])
            if child is None:
                break
            known.append(child)
            block = child
        return known

    def on_device(self, path: Sequence[Block]) -> int:
        """How many blocks of a path are on the device: the first so many."""
        return bisect_left(path, True, key=lambda block: not block.on_device)

    def latest_path(self, program: str) -> list[Block]:
        """What is cached of the context that the program's last call to leave had."""
        keys: list[Key] = []
        block = self._holdings.latest.get(program)
        while block is not None and block.parent is not None:
            keys.append(block.key)
            block = block.parent
        keys.reverse()
        return self.match(keys, len(keys), [])

    def value(self, block: Block, now: float) -> float:
        """What keeping the block is worth: the most that it is worth to any of its owners."""
        return _most(self._orders.device_value, block, now)

    def host_value(self, block: Block, now: float) -> float:
        """The same for keeping it in host memory."""
        return _most(self._orders.host_value, block, now)

    def victims(self, count: int, now: float, ceiling: float) -> list[Block]:
        """Up to ``count`` blocks worth at most ``ceiling``, in the order they are to be evicted.

        Costs O(idle leaves + count log): there are about as many leaves as contexts, and values
        move with time and orders, so nothing sorted is kept from one question to the next.
        """
        heap = [(self._victim_key(leaf, now), index, leaf) for index, leaf in self._idle_leaves.items()]
        heapq.heapify(heap)
        gone: dict[int, int] = {}
        chosen: list[Block] = []
        while heap and len(chosen) < count and heap[0][0][0] <= ceiling:
            block = heapq.heappop(heap)[2]
            chosen.append(block)
            parent = block.parent
            if parent is None or parent is self._root or parent.references:
                continue
            gone[parent.index] = gone.get(parent.index, 0) + 1
            if gone[parent.index] == parent.device_children:
                heapq.heappush(heap, (self._victim_key(parent, now), parent.index, parent))
        return chosen

    def _victim_key(self, block: Block, now: float) -> VictimKey:
        return victim_key(self.value(block, now), block.start_tokens + self.block_tokens, block.last_used)

    # Commands: the life of a call's table

    def pin(self, path: Iterable[Block]) -> None:
        """Reference a match, so that it cannot be evicted; ``open`` or ``unpin`` follows."""
        for block in path:
            self._reference(block)

    def unpin(self, path: Sequence[Block]) -> None:
        """Undo ``pin``. Recency stays as it was."""
        for block in reversed(path):
            self._dereference(block)

    def open(self, program: str, path: list[Block]) -> Table:
        """Begin a call on a match that is pinned and on the device; ``release`` or ``discard`` ends it."""
        table = Table(program)
        table.path = path
        table.blocks = [block.index for block in path]
        for block in path:
            self._own(block, program)
        return table

    def allocate(self, table: Table, count: int) -> None:
        """Add ``count`` free blocks to the table; the caller has made sure that there are so many."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free"
        table.blocks += [heapq.heappop(self._free) for _ in range(count)]
        self._holdings.count(table.program, device=count)

    def fill(self, table: Table, key: Key) -> bool:
        """The first private block of the table has become full: cache it.

        Returns whether these tokens had been held before and were let go. Where another call
        cached the same block first, the table takes that one and its own becomes free; it may be one
        that is still to come up. One that stayed in host memory is on the device from now on.
        """
        place = len(table.path)
        parent = table.path[-1] if place else self._root
        known = parent.children.get(key)
        if known is not None and known.on_device:
            self._reference(known)
            self._own(known, table.program)
            table.path.append(known)
            self._return(table, place, place + 1)
            table.blocks.insert(place, known.index)
            return False
        let_go = False
        if known is None:
            known = parent.children[key] = Block(NOWHERE, key, parent, place * self.block_tokens)
            let_go = known.chain in self._let_go
            self._let_go.pop(known.chain, None)
        self._reference(known)
        self._enter_device(known, table.blocks[place])
        if known.slot != NOWHERE:
            self._free_slot(self._leave_host(known))
        # It is the program's private block no more, but may have been its own already.
        self._own(known, table.program)
        self._holdings.count(table.program, device=-1)
        table.path.append(known)
        return let_go

    def release(self, table: Table, now: float) -> None:
        """The call ended or was preempted: its full blocks stay as cache, the others become free."""
        self._return(table, len(table.path), len(table.blocks))
        for block in reversed(table.path):
            block.last_used = now
            self._dereference(block)
        if table.path and table.program in table.path[-1].owners:
            self._holdings.latest[table.program] = table.path[-1]

    def discard(self, table: Table, now: float) -> None:
        """Release, and drop what only this call used: its contents are not to be trusted."""
        self.release(table, now)
        for block in reversed(table.path):
            if block.references or block.device_children:
                break
            self._leave_device(block)
            self._drop(block)
            self._evicted += 1

    # Commands: what comes and goes

    def evict(self, blocks: Iterable[Block], now: float) -> None:
        """Take idle leaves off the device, in this order (as ``victims`` gives them): down to host memory
        what is worth it, and away the rest with all that hangs on it."""
        room = HostRoom(self._host, self._orders.host_price, now)
        for block in blocks:
            assert not block.references, f"{block} is in use"
            assert not block.device_children, f"{block} is no leaf"
            slot = room.slot_for(block, self._drop)
            if slot is None:
                self._leave_device(block)
                self._drop(block)
                self._evicted += 1
                continue
            block.slot = slot
            for program in block.owners:
                self._holdings.count(program, host=1)
            self.transit.demote(self._leave_device(block), slot)
            self._host.file(block)
            room.came(block)

    def promote(self, path: list[Block]) -> None:
        """Bring the rest of a pinned path up to free blocks; the caller has made sure that there are as
        many. The path stays referenced for the way, beside the caller's pin."""
        self.pin(path)
        for block in path[self.on_device(path) :]:
            self._enter_device(block, heapq.heappop(self._free))
            self.transit.promote(self._leave_host(block), block)
        self.transit.end_round(list(path))

    def settle(self, arrived: int) -> None:
        """So many promotions have ended, of all that ever began."""
        slots, paths = self.transit.settle(arrived)
        for slot in slots:
            self._host.give_back(slot)
        for path in paths:
            self.unpin(path)

    def _enter_device(self, block: Block, index: int) -> None:
        """The referenced block has a place on the device."""
        assert block.parent is not None, "the root is no block"
        block.index = index
        block.parent.device_children += 1
        for program in block.owners:
            self._holdings.count(program, device=1)

    def _leave_device(self, block: Block) -> int:
        """The idle leaf gives its place up; which it was."""
        parent, index = block.parent, block.index
        assert parent is not None, "the root is no block"
        block.index = NOWHERE
        del self._idle_leaves[index]
        self.idle_blocks -= 1
        heapq.heappush(self._free, index)
        parent.device_children -= 1
        if parent is not self._root and not parent.references and not parent.device_children:
            self._idle_leaves[parent.index] = parent
        for program in block.owners:
            self._holdings.count(program, device=-1)
        return index

    def _leave_host(self, block: Block) -> int:
        """The block gives its slot up, but not yet back; which it was."""
        slot, block.slot = block.slot, NOWHERE
        self._host.file(block)
        for program in block.owners:
            self._holdings.count(program, host=-1)
        return slot

    def _free_slot(self, slot: int) -> None:
        self.transit.forget(slot)
        self._host.give_back(slot)

    def _drop(self, block: Block) -> None:
        """Take a block that is not on the device out of the tree, and all below it first."""
        below = [block]
        for each in below:
            below += each.children.values()
        for each in reversed(below):
            if each.slot != NOWHERE:
                self._free_slot(self._leave_host(each))
            each.cached = False
            assert each.parent is not None, "the root is no block"
            del each.parent.children[each.key]
            self._remember(each.chain)
        if block.parent is not None:
            self._host.file(block.parent)

    def _reference(self, block: Block) -> None:
        block.references += 1
        if block.references == 1 and block.on_device:
            self.idle_blocks -= 1
            self._idle_leaves.pop(block.index, None)
        elif block.references == 1:
            self._host.file(block)

    def _dereference(self, block: Block) -> None:
        block.references -= 1
        if block.references:
            return
        if not block.on_device:
            self._host.file(block)
            return
        self.idle_blocks += 1
        if not block.device_children:
            self._idle_leaves[block.index] = block

    def _own(self, block: Block, program: str) -> None:
        owners = block.owners
        if program in owners:
            if len(owners) > 1:
                del owners[program]
                owners[program] = None
            return
        owners[program] = None
        self._holdings.count(program, device=1)
        if len(owners) > OWNERS_REMEMBERED:
            oldest = next(iter(owners))
            del owners[oldest]
            self._holdings.count(oldest, device=-1)

    def _return(self, table: Table, start: int, end: int) -> None:
        for index in table.blocks[start:end]:
            heapq.heappush(self._free, index)
        del table.blocks[start:end]
        self._holdings.count(table.program, device=start - end)

    def _remember(self, chain: int) -> None:
        self._let_go[chain] = None
        if len(self._let_go) > HISTORY_PER_BLOCK * self.num_blocks:
            del self._let_go[next(iter(self._let_go))]

    # What programs hold

    def held(self) -> tuple[Held, ...]:
        """What every program holds, in whole blocks; what runs includes what is reserved for it."""
        return self._holdings.all()

    def take_changes(self) -> tuple[tuple[Held, ...], int]:
        """The same for programs whose holding changed since this was asked last, and how many blocks
        were dropped from the device since."""
        evicted, self._evicted = self._evicted, 0
        return self._holdings.take_changes(), evicted

    def check_invariants(self, tables: Sequence[Table]) -> None:
        """Every block is in one place, every count is what it counts. ``tables``: all open ones."""
        cached, transit = check_tree(self._root, self.block_tokens), self.transit
        check_references(cached, tables, transit.paths(), self._holdings)
        device = [block.index for block in cached if block.on_device]
        private = [index for table in tables for index in table.blocks[len(table.path) :]]
        assert sorted([*self._free, *private, *device]) == list(range(self.num_blocks))
        slots = [block.slot for block in cached if not block.on_device]
        assert sorted([*self._host.free, *transit.slots, *slots]) == list(range(self._host.count))
        assert len(transit.slots) == transit.begun - transit.arrived
        idle = [block for block in cached if block.on_device and not block.references]
        assert self.idle_blocks == len(idle)
        assert self._idle_leaves == {block.index: block for block in idle if not block.device_children}
        unused = [block for block in cached if not (block.on_device or block.references or block.children)]
        assert set(self._host.leaves) == set(unused)
        assert all(len(block.owners) <= OWNERS_REMEMBERED for block in cached)
