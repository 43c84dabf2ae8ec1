"""Paged KV with a prefix cache: which block holds what, who uses it, and who goes first.

Device memory is a fixed number of blocks of ``block_tokens`` positions each. A block is in one of
three places at any time, and ``check_invariants`` says so:

* **free**: holds nothing;
* **private** to one running call: reserved for it, or not full yet;
* **cached**: full, and a node of the prefix tree. The way from the root to a node spells the
  tokens of a context, so equal prefixes of different calls and programs are one block.

Running calls count references on every cached block of their context, from the first to the last;
so a referenced block has only referenced ancestors, and all blocks below an idle one are idle.
Only idle leaves are evicted: a context loses its tail first and what is left of it is a prefix.

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
from collections.abc import Iterable, Sequence

from agentsched.core.events import Held
from agentsched.core.standing import StandingOrders, VictimKey, victim_key

Key = tuple[int, ...]
"""The tokens of one full block."""

OWNERS_REMEMBERED = 64
"""A block forgets all but its latest owners: a system prompt outlives thousands of programs."""

HISTORY_PER_BLOCK = 16
"""How many evicted blocks are remembered, for each block of the pool, to count recomputation."""


class Block:
    """A cached block: a node of the prefix tree. ``start_tokens`` is its place in the context."""

    __slots__ = (
        "cached",
        "chain",
        "children",
        "index",
        "key",
        "last_used",
        "owners",
        "parent",
        "references",
        "start_tokens",
    )

    def __init__(self, index: int, key: Key, parent: Block | None, start_tokens: int) -> None:
        self.index = index
        self.key = key
        self.parent = parent
        self.start_tokens = start_tokens
        # Identifies the whole prefix. Integers hash alike in every process, so this is reproducible.
        self.chain: int = hash((parent.chain, key)) if parent else 0
        self.children: dict[Key, Block] = {}
        self.owners: dict[str, None] = {}
        self.references = 0
        self.last_used = 0.0
        self.cached = True

    def __repr__(self) -> str:
        return f"Block({self.index}, at {self.start_tokens}, {self.references} references)"


class Table:
    """A running call's blocks: the cached ones of its context first (``path``), then private ones."""

    __slots__ = ("blocks", "path", "program")

    def __init__(self, program: str) -> None:
        self.program = program
        self.path: list[Block] = []
        self.blocks: list[int] = []


def block_keys(tokens: Sequence[int], block_tokens: int) -> list[Key]:
    """The full blocks of a context."""
    full = len(tokens) // block_tokens * block_tokens
    return [tuple(tokens[at : at + block_tokens]) for at in range(0, full, block_tokens)]


class KvCache:
    """The pool and its prefix tree. ``orders`` is only read: it says what a block is worth."""

    def __init__(self, num_blocks: int, block_tokens: int, orders: StandingOrders) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(f"KV needs blocks of tokens, got {num_blocks} blocks of {block_tokens} tokens")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.idle_blocks = 0
        """Cached blocks without a reference. Each can be evicted, though a leaf only at a time."""
        self._orders = orders
        self._root = Block(-1, (), None, -block_tokens)
        # A heap, lowest first: what is allocated together tends to lie together.
        self._free = list(range(num_blocks))
        self._idle_leaves: dict[int, Block] = {}
        self._held: dict[str, int] = {}
        self._changed: dict[str, None] = {}
        self._evicted = 0
        self._let_go: dict[int, None] = {}

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

    def available_beside(self, path: Sequence[Block]) -> int:
        """Blocks that are free or idle, those on ``path`` (a match) not counted."""
        first_idle = bisect_left(path, True, key=lambda block: block.references == 0)
        return len(self._free) + self.idle_blocks - (len(path) - first_idle)

    def value(self, block: Block, now: float) -> float:
        """What keeping the block is worth: the most that it is worth to any of its owners."""
        worth, token = self._orders.device_value, block.start_tokens
        return max((worth(program, token, now) for program in block.owners), default=0.0)

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
            if gone[parent.index] == len(parent.children):
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
        """Undo ``pin``: the call could not start. Recency stays as it was."""
        for block in reversed(path):
            self._dereference(block)

    def open(self, program: str, path: list[Block]) -> Table:
        """Begin a call on a match that is pinned; ``release`` or ``discard`` ends it."""
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
        self._count(table.program, count)

    def fill(self, table: Table, key: Key) -> bool:
        """The first private block of the table has become full: cache it.

        Returns whether these tokens had been held before and were let go. Where another call
        cached the same block first, the table takes that one and its own becomes free.
        """
        place = len(table.path)
        parent = table.path[-1] if place else self._root
        known = parent.children.get(key)
        if known is not None:
            self._reference(known)
            self._own(known, table.program)
            table.path.append(known)
            self._return(table, place, place + 1)
            table.blocks.insert(place, known.index)
            return False
        block = Block(table.blocks[place], key, parent, place * self.block_tokens)
        parent.children[key] = block
        block.references = 1
        block.owners[table.program] = None
        table.path.append(block)
        if block.chain not in self._let_go:
            return False
        del self._let_go[block.chain]
        return True

    def release(self, table: Table, now: float) -> None:
        """The call ended or was preempted: its full blocks stay as cache, the others become free."""
        self._return(table, len(table.path), len(table.blocks))
        for block in reversed(table.path):
            block.last_used = now
            self._dereference(block)

    def discard(self, table: Table, now: float) -> None:
        """Release, and evict what only this call used: its contents are not to be trusted."""
        self.release(table, now)
        for block in reversed(table.path):
            if block.references or block.children:
                break
            self.evict([block])

    def evict(self, blocks: Iterable[Block]) -> None:
        """Drop idle leaves, in this order (as ``victims`` gives them)."""
        for block in blocks:
            parent = block.parent
            assert parent is not None, "the root is no block"
            assert not block.references, f"{block} is in use"
            assert not block.children, f"{block} is no leaf"
            block.cached = False
            del parent.children[block.key]
            del self._idle_leaves[block.index]
            self.idle_blocks -= 1
            self._evicted += 1
            heapq.heappush(self._free, block.index)
            for program in block.owners:
                self._count(program, -1)
            if parent is not self._root and not parent.references and not parent.children:
                self._idle_leaves[parent.index] = parent
            self._remember(block.chain)

    def _reference(self, block: Block) -> None:
        if block.references == 0:
            self.idle_blocks -= 1
            self._idle_leaves.pop(block.index, None)
        block.references += 1

    def _own(self, block: Block, program: str) -> None:
        owners = block.owners
        if program in owners:
            if len(owners) > 1:
                del owners[program]
                owners[program] = None
            return
        owners[program] = None
        self._count(program, 1)
        if len(owners) > OWNERS_REMEMBERED:
            oldest = next(iter(owners))
            del owners[oldest]
            self._count(oldest, -1)

    def _dereference(self, block: Block) -> None:
        block.references -= 1
        if block.references == 0:
            self.idle_blocks += 1
            if not block.children:
                self._idle_leaves[block.index] = block

    def _return(self, table: Table, start: int, end: int) -> None:
        for index in table.blocks[start:end]:
            heapq.heappush(self._free, index)
        del table.blocks[start:end]
        self._count(table.program, start - end)

    def _remember(self, chain: int) -> None:
        self._let_go[chain] = None
        if len(self._let_go) > HISTORY_PER_BLOCK * self.num_blocks:
            del self._let_go[next(iter(self._let_go))]

    # What programs hold

    def _count(self, program: str, blocks: int) -> None:
        if blocks == 0:
            return
        held = self._held.get(program, 0) + blocks
        self._changed[program] = None
        if held:
            self._held[program] = held
        else:
            del self._held[program]

    def held(self) -> tuple[Held, ...]:
        """What every program holds, in whole blocks; what runs includes what is reserved for it."""
        return tuple(self._held_by(program) for program in sorted(self._held))

    def take_changes(self) -> tuple[tuple[Held, ...], int]:
        """The same for programs whose holding changed since this was asked last, and how many blocks
        were evicted since."""
        changed = tuple(self._held_by(program) for program in sorted(self._changed))
        evicted = self._evicted
        self._changed.clear()
        self._evicted = 0
        return changed, evicted

    def _held_by(self, program: str) -> Held:
        return Held(program=program, device_tokens=self._held.get(program, 0) * self.block_tokens)

    def check_invariants(self, tables: Iterable[Table]) -> None:
        """Every block is in one place, every count is what it counts. ``tables``: all open ones."""
        cached: dict[int, Block] = {}
        waiting = [self._root]
        while waiting:
            block = waiting.pop()
            for key, child in block.children.items():
                assert child.parent is block, child
                assert child.key == key, child
                assert child.start_tokens == block.start_tokens + self.block_tokens, child
                assert child.index not in cached, f"block {child.index} is cached twice"
                cached[child.index] = child
                waiting.append(child)
        references = dict.fromkeys(cached, 0)
        held: dict[str, int] = {}
        private: list[int] = []
        for table in tables:
            assert table.blocks[: len(table.path)] == [block.index for block in table.path]
            for block in table.path:
                assert cached.get(block.index) is block, f"{block} is used but not cached"
                references[block.index] += 1
            private += table.blocks[len(table.path) :]
            held[table.program] = held.get(table.program, 0) + len(table.blocks) - len(table.path)
        for index, block in cached.items():
            assert block.references == references[index], block
            assert len(block.owners) <= OWNERS_REMEMBERED, block
            leaf = not block.references and not block.children
            assert (self._idle_leaves.get(index) is block) is leaf, block
            for program in block.owners:
                held[program] = held.get(program, 0) + 1
        assert len(self._idle_leaves) <= len(cached)
        assert self.idle_blocks == sum(not count for count in references.values())
        assert {program: blocks for program, blocks in held.items() if blocks} == self._held
        assert sorted([*self._free, *private, *cached]) == list(range(self.num_blocks))
