"""KV of the analytic engine: the prefix tree of ``kv.py`` with a whole run of blocks as one node.

Contexts come as pieces (key, tokens) instead of tokens; equal pieces after equal pieces are the same
KV. A node is the part of the tree that one piece fills, in whole blocks: a block that two pieces share
belongs to the later one. Of a node's blocks the first ``held`` are on the device and the next ``host``
in host memory; eviction takes from the end, so both stay prefixes. Nodes with a reference (a running
call uses them) are not evicted; all others are, leaves first, by the same order as in ``kv.py``.

The host tier is exclusive: what is loaded leaves it. Writing to it costs no time: it keeps up with
prefill on every profile here, at a fifth of the link or less.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from agentsched.core.events import Held
from agentsched.core.standing import StandingOrders, VictimKey, victim_key

EMPTY_REMEMBERED = 1_000
"""Nodes that hold nothing and belong to nobody, kept to count recomputation; past this, the first goes."""

Pieces = Sequence[tuple[str, int]]
"""(key, tokens) from the start of a context; the last piece is the program's own and may grow."""


class Node:
    """One piece in its place. ``once``: the most blocks it ever held."""

    __slots__ = (
        "children",
        "held",
        "host",
        "host_children",
        "kept_children",
        "key",
        "last_used",
        "once",
        "owners",
        "parent",
        "references",
        "start",
    )

    def __init__(self, parent: Node | None, key: str, start: int) -> None:
        self.parent, self.key = parent, key
        self.start = start
        self.children: dict[str, Node] = {}
        self.owners: dict[str, None] = {}
        self.held = self.host = self.once = 0
        self.kept_children = self.host_children = 0
        self.references = 0
        self.last_used = 0.0


class Path:
    """A context's nodes, and how many blocks of each it fills."""

    __slots__ = ("blocks", "nodes")

    def __init__(self, nodes: list[Node], blocks: list[int]) -> None:
        self.nodes, self.blocks = nodes, blocks

    def __iter__(self) -> Iterator[tuple[Node, int]]:
        return zip(self.nodes, self.blocks, strict=True)


class RunCache:
    """The pool, in blocks. ``private`` blocks belong to running calls and are counted by the caller's
    ``reserve`` and ``give_back``; all others are in nodes, or free."""

    def __init__(
        self, num_blocks: int, block_tokens: int, orders: StandingOrders, *, host_blocks: int = 0
    ) -> None:
        self.num_blocks, self.block_tokens = num_blocks, block_tokens
        self.free_blocks = num_blocks
        self.idle_blocks = 0
        self.host_free = self.host_blocks = host_blocks
        self._orders = orders
        self._root = Node(None, "", 0)
        self._idle_leaves: dict[Node, None] = {}
        self._host_leaves: dict[Node, None] = {}
        self._empty: dict[Node, None] = {}
        self._paths: dict[str, Path] = {}
        self._private: dict[str, int] = {}
        self._changed: dict[str, None] = {}
        self._evicted = 0

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def path(self, pieces: Pieces) -> Path:
        """The nodes of a context of full blocks; makes those that are new."""
        node, nodes, blocks = self._root, [], []
        tokens = start = 0
        above = ""
        for number, (key, count) in enumerate(pieces, 1):
            tokens += count
            end = tokens // self.block_tokens
            if end == start and number < len(pieces):
                above += f"{key}|"  # it fills no block of its own, but tells the next one's apart
                continue
            child = node.children.get(above + key)
            if child is None:
                child = node.children[above + key] = Node(node, above + key, start)
                self._empty[child] = None  # until it is pinned, before anything is forgotten
            node, above = child, ""
            nodes.append(node)
            blocks.append(end - start)
            start = end
        return Path(nodes, blocks)

    def match(self, path: Path, limit: int) -> tuple[int, int, int]:
        """Blocks of the path's first ``limit`` on device, after them in host memory, and once held."""
        device = host = once = 0
        on_device = on_host = known = True
        for node, blocks in path:
            if on_device:
                device += min(node.held, blocks)
                on_device = node.held >= blocks
            if not on_device and on_host:
                there = node.host if node.held < blocks else blocks
                host += min(there, blocks - min(node.held, blocks))
                on_host = node.held + node.host >= blocks
            if known:
                once += min(node.once, blocks)
                known = node.once >= blocks
        device = min(device, limit)
        return device, min(host, limit - device), min(once, limit)

    # Running calls

    def pin(self, path: Path) -> None:
        for node in path.nodes:
            if node.references == 0:
                self.idle_blocks -= node.held
                self._idle_leaves.pop(node, None)
                self._host_leaves.pop(node, None)
                self._empty.pop(node, None)
            node.references += 1

    def unpin(self, path: Path) -> None:
        for node in reversed(path.nodes):
            node.references -= 1
            if node.references == 0:
                self.idle_blocks += node.held
                self._file(node)

    def own(self, program: str, path: Path) -> None:
        """The program's context is this path from now on, and no other."""
        before = self._paths.get(program)
        for node in path.nodes:
            node.owners[program] = None
        self._paths[program] = path
        self._changed[program] = None
        if before is not None:
            self._leave(program, [node for node in before.nodes if node not in path.nodes])

    def disown(self, program: str) -> None:
        """The program has ended: what only it held stays as plain cache."""
        path = self._paths.pop(program, None)
        self._leave(program, path.nodes if path is not None else ())
        self._changed[program] = None

    def _leave(self, program: str, nodes: Sequence[Node]) -> None:
        for node in reversed(nodes):
            node.owners.pop(program, None)
            self._file(node)

    def reserve(self, program: str, blocks: int) -> None:
        assert blocks <= self.free_blocks, f"{blocks} blocks wanted, {self.free_blocks} free"
        self.free_blocks -= blocks
        self._count(program, blocks)

    def give_back(self, program: str, blocks: int) -> None:
        self.free_blocks += blocks
        self._count(program, -blocks)

    def _count(self, program: str, blocks: int) -> None:
        left = self._private.get(program, 0) + blocks
        assert left >= 0, f"{program} gives back more than it has"
        self._changed[program] = None
        if left:
            self._private[program] = left
        else:
            self._private.pop(program, None)

    def commit(self, program: str, path: Path, limit: int) -> int:
        """The first ``limit`` blocks of the pinned path are computed: cache them. Returns how many
        of the program's private blocks that took; those that another had cached first are free."""
        taken = 0
        for node, blocks in path:
            there = min(blocks, limit)
            limit -= there
            added = there - node.held
            if added > 0:
                if node.host:
                    self._drop_host(node, node.host)
                if node.held == 0 and node.parent is not None:
                    node.parent.kept_children += 1
                node.held = there
                node.once = max(node.once, there)
                taken += added
            if limit == 0:
                break
        if taken:
            self._count(program, -taken)
        return taken

    def load(self, path: Path, limit: int) -> int:
        """Take up to ``limit`` blocks of the pinned path out of host memory; the caller has reserved
        device blocks for them and commits them when they have come. Returns how many."""
        loaded, gone = 0, False
        for node, blocks in path:
            if node.host and loaded < limit and not gone:
                count = min(node.host, max(0, blocks - node.held), limit - loaded)
                loaded += count
                # What lies behind the part taken has lost its connection, or is about to be rewritten.
                gone = count < node.host
                self._drop_host(node, node.host)
        return loaded

    def touch(self, path: Path, now: float) -> None:
        for node in path.nodes:
            node.last_used = now

    # Eviction

    def _file(self, node: Node) -> None:
        """Put an idle node where eviction looks for it."""
        if node.references or node is self._root:
            return
        if node.held and not node.kept_children:
            self._idle_leaves[node] = None
        else:
            self._idle_leaves.pop(node, None)
        if node.host and not node.host_children:
            self._host_leaves[node] = None
        else:
            self._host_leaves.pop(node, None)
        if not (node.held or node.host or node.owners or node.children):
            self._empty[node] = None
            self._prune()

    def _prune(self) -> None:
        while len(self._empty) > EMPTY_REMEMBERED:
            node = next(iter(self._empty))
            del self._empty[node]
            if node.children or node.owners or node.references or node.held or node.host:
                continue  # it is in use again
            assert node.parent is not None
            del node.parent.children[node.key]
            self._file(node.parent)

    def _value(self, node: Node, token: int, now: float, *, host: bool = False) -> float:
        worth = self._orders.host_value if host else self._orders.device_value
        return max((worth(program, token, now) for program in node.owners), default=0.0)

    def victims(self, count: int, now: float, ceiling: float) -> list[tuple[Node, int]]:
        """Which nodes' last blocks go, in order, to gain up to ``count``; none worth over ``ceiling``."""
        heap: list[tuple[VictimKey, int, Node, int]] = []
        for node in self._idle_leaves:
            heap.append((self._key(node, node.held, now), len(heap), node, node.held))
        heapq.heapify(heap)
        ties = len(heap)
        gone: dict[Node, int] = {}
        chosen: list[tuple[Node, int]] = []
        while heap and count > 0 and heap[0][0][0] <= ceiling:
            _, _, node, held = heapq.heappop(heap)
            blocks = min(count, held - self._even_from(node, held))
            count -= blocks
            chosen.append((node, blocks))
            ties += 1
            if blocks < held:
                heapq.heappush(heap, (self._key(node, held - blocks, now), ties, node, held - blocks))
                continue
            parent = node.parent
            if parent is None or parent is self._root or parent.references:
                continue
            gone[parent] = gone.get(parent, 0) + 1
            if gone[parent] == parent.kept_children:
                heapq.heappush(heap, (self._key(parent, parent.held, now), ties, parent, parent.held))
        return chosen

    def _key(self, node: Node, held: int, now: float) -> VictimKey:
        tail = (node.start + held - 1) * self.block_tokens
        value = self._value(node, tail, now) if node.owners else 0.0
        return victim_key(value, tail, node.last_used)

    def _even_from(self, node: Node, held: int) -> int:
        """From which block to the end of ``held`` all are worth the same: worth changes by segment."""
        start, end = node.start * self.block_tokens, (node.start + held) * self.block_tokens
        inside = [s for p in node.owners for s in self._orders.segment_starts(p) if start < s < end]
        return max(inside) // self.block_tokens - node.start if inside else 0

    def evict(self, node: Node, blocks: int, now: float) -> None:
        """Take the node's last ``blocks`` off the device: to host memory by its price, or away."""
        kept = self._demote(node, blocks, now)
        if kept < blocks and node.host:
            # The blocks between are gone: what lies behind them cannot be used again.
            self._drop_host(node, node.host)
        node.held -= blocks
        self.idle_blocks -= blocks
        self.free_blocks += blocks
        self._evicted += blocks - kept
        if kept:
            if node.host == 0 and node.parent is not None:
                node.parent.host_children += 1
            node.host += kept
            self.host_free -= kept
        if node.held == 0 and node.parent is not None:
            node.parent.kept_children -= 1
            self._file(node.parent)
        self._file(node)
        for program in node.owners:
            self._changed[program] = None

    def _demote(self, node: Node, blocks: int, now: float) -> int:
        """How many of the node's last blocks find a place in host memory; makes it."""
        if not self.host_blocks:
            return 0
        price = self._orders.host_price
        tail = (node.start + node.held - blocks) * self.block_tokens
        value = self._value(node, tail, now, host=True)
        if value < price or (node.parent is not None and node.host_children and not node.held):
            return 0
        mine = (value, now)
        while self.host_free < blocks and self._host_leaves:
            leaf = min(self._host_leaves, key=lambda n: self._host_key(n, now))
            if leaf is node or self._host_key(leaf, now) > mine:
                break
            self._drop_host(leaf, min(leaf.host, blocks - self.host_free))
        return blocks if self.host_free >= blocks else 0

    def _host_key(self, node: Node, now: float) -> tuple[float, float]:
        tail = (node.start + node.held + node.host - 1) * self.block_tokens
        return (self._value(node, tail, now, host=True), node.last_used)

    def _drop_host(self, node: Node, blocks: int) -> None:
        node.host -= blocks
        self.host_free += blocks
        if node.host == 0 and node.parent is not None:
            node.parent.host_children -= 1
            self._file(node.parent)
        self._file(node)
        for program in node.owners:
            self._changed[program] = None

    # What programs hold

    def held(self) -> tuple[Held, ...]:
        """What every program holds, whole blocks; what runs includes what is reserved for it."""
        return tuple(self._held_by(p) for p in sorted({*self._paths, *self._private}))

    def take_changes(self) -> tuple[tuple[Held, ...], int]:
        """The same for programs whose holding changed since this was asked last, and how many blocks
        were evicted since."""
        changed = tuple(self._held_by(program) for program in sorted(self._changed))
        evicted = self._evicted
        self._changed.clear()
        self._evicted = 0
        return changed, evicted

    def _held_by(self, program: str) -> Held:
        device, host = self._private.get(program, 0), 0
        path = self._paths.get(program)
        if path is not None:
            on_device, on_host, _ = self.match(path, self.num_blocks + self.host_blocks)
            device, host = device + on_device, on_host
        return Held(
            program=program,
            device_tokens=device * self.block_tokens,
            host_tokens=host * self.block_tokens,
        )

    def check_invariants(self) -> None:
        """Every block is counted once."""
        held = host = idle = 0
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            assert node.kept_children == sum(child.held > 0 for child in node.children.values())
            assert node.host_children == sum(child.host > 0 for child in node.children.values())
            held, host = held + node.held, host + node.host
            idle += 0 if node.references or node is self._root else node.held
            leaf = bool(
                node is not self._root and node.held and not node.kept_children and not node.references
            )
            assert (node in self._idle_leaves) is leaf
            used = node is self._root or node.references or node.held or node.host or node.owners
            assert used or node.children or node in self._empty, "a node is neither used nor forgotten"
        assert self.idle_blocks == idle
        assert self.free_blocks + held + sum(self._private.values()) == self.num_blocks
        assert self.host_free + host == self.host_blocks
