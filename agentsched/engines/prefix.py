"""The nodes of the prefix tree, and the tables of running calls that refer to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

Key = tuple[int, ...]
"""The tokens of one full block. The first block that is a tenant's own ends with the tenant's mark."""

NOWHERE = -1


class Block:
    """A cached block: a node of the prefix tree. ``start_tokens`` is its place in the context.

    It is on the device (``index``) or in host memory (``slot``), never in both. One that is on its
    way to the device counts as there; it has come once ``arrives`` promotions have ended.
    """

    __slots__ = (
        "arrives",
        "cached",
        "chain",
        "children",
        "device_children",
        "index",
        "key",
        "last_used",
        "owners",
        "parent",
        "references",
        "slot",
        "start_tokens",
    )

    def __init__(self, index: int, key: Key, parent: Block | None, start_tokens: int) -> None:
        self.index = index
        self.slot = NOWHERE
        self.arrives = 0
        self.key = key
        self.parent = parent
        self.start_tokens = start_tokens
        # Identifies the whole prefix. Integers hash alike in every process, so this is reproducible.
        self.chain: int = hash((parent.chain, key)) if parent else 0
        self.children: dict[Key, Block] = {}
        self.device_children = 0
        self.owners: dict[str, None] = {}
        self.references = 0
        self.last_used = 0.0
        self.cached = True

    @property
    def on_device(self) -> bool:
        return self.index != NOWHERE

    def __repr__(self) -> str:
        place = f"{self.index}" if self.on_device else f"host {self.slot}"
        return f"Block({place}, at {self.start_tokens}, {self.references} references)"


class Table:
    """A running call's blocks: the cached ones of its context first (``path``), then private ones."""

    __slots__ = ("blocks", "path", "program")

    def __init__(self, program: str) -> None:
        self.program = program
        self.path: list[Block] = []
        self.blocks: list[int] = []


class Keys:
    """The keys of one context's full blocks, in order, as the context grows.

    With a ``salt`` the context is found by calls of the same salt only, but for the blocks that lie
    wholly in its first ``shared_tokens``: these have the keys that they have without a salt. One
    marked key is enough, since a block is found by way of all that goes before it.
    """

    __slots__ = ("_block_tokens", "_mark", "_marked", "known")

    def __init__(self, block_tokens: int, salt: str = "", shared_tokens: int = 0) -> None:
        self.known: list[Key] = []
        self._block_tokens = block_tokens
        self._marked = shared_tokens // block_tokens
        self._mark: Key = ()
        if salt:
            # No two tenants may come to share a mark, so it is wide; it need not be secret.
            self._mark = (int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=16).digest()),)

    def of(self, context: Sequence[int]) -> list[Key]:
        """The keys of all full blocks; ``context`` begins with what it was when last asked."""
        size = self._block_tokens
        for at in range(len(self.known), len(context) // size):
            key = tuple(context[at * size : (at + 1) * size])
            self.known.append(key + self._mark if at == self._marked else key)
        return self.known
