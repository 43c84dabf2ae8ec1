"""What a server's cache holds, and for whom, from the events that it publishes.

SGLang and vLLM name blocks by hashes: a block is stored behind a parent, by a request of a session; blocks
are removed, or all cleared. What a session's requests stored, and what that stands behind, is held for it: so
a shared block counts for each of its owners, as in the reports of our own engines.

Blocks that were stored one behind the other are one ``_Run``, since pages may be single tokens. A cache loses
tails before heads; should a block within a run go first, what stands behind it in that run counts as lost: it
cannot be found any more. Removals of what was stored before anybody listened are ignored.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

Block = Hashable
"""The hash of a block; of several publishers, with the publisher's number."""


class _Run:
    """``alive`` of its blocks count, from its first one on; ``owners`` have its first so many."""

    __slots__ = ("alive", "block_tokens", "blocks", "kept", "owners", "parent")

    def __init__(self, parent: tuple[_Run, int] | None, block_tokens: int) -> None:
        self.parent = parent
        self.block_tokens = block_tokens
        self.blocks = self.alive = self.kept = 0
        self.owners: dict[str, int] = {}


class KvLedger:
    """Tokens held, by session. Not for several threads."""

    def __init__(self) -> None:
        self.tokens = 0
        """Of all blocks that are known to be there."""
        self.evicted_tokens = 0
        """Of blocks that were removed, since it began."""
        self._at: dict[Block, tuple[_Run, int]] = {}
        self._owned: dict[str, dict[_Run, None]] = {}
        self._changed: dict[str, None] = {}

    def stored(
        self, blocks: Sequence[Block], parent: Block | None, block_tokens: int, session: str | None
    ) -> None:
        """These blocks follow ``parent``, in this order; None: they begin a context."""
        place = None if parent is None else self._at.get(parent)
        end = None if place is None else (place[0], place[1] + 1)
        new: list[Block] = []
        for block in blocks:
            known = self._at.get(block)
            if known is not None and not new:
                end = (known[0], known[1] + 1)
            else:
                if known is not None:
                    self._lose(block)
                new.append(block)
        if new:
            end = self._append(end, new, block_tokens)
        if session is not None and end is not None:
            self._own(session, end)

    def removed(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self.evicted_tokens += self._lose(block)

    def cleared(self) -> None:
        """Nothing is held any more, as far as is known."""
        self._changed.update(dict.fromkeys(self._owned))
        self._at.clear()
        self._owned.clear()
        self.tokens = 0

    def held(self, session: str) -> int:
        """Tokens held for it."""
        runs = self._owned.get(session, ())
        return sum(min(run.alive, run.owners[session]) * run.block_tokens for run in runs)

    def changes(self) -> Iterator[tuple[str, int]]:
        """What is held for each session for which that has changed since it was asked last."""
        changed, self._changed = self._changed, {}
        return ((session, self.held(session)) for session in changed)

    def _append(
        self, end: tuple[_Run, int] | None, blocks: list[Block], block_tokens: int
    ) -> tuple[_Run, int]:
        """Blocks that are new, behind ``end``."""
        run, begin = end or (None, 0)
        if run is None or begin != run.blocks or run.alive < begin or run.block_tokens != block_tokens:
            run, begin = _Run(end, block_tokens), 0
        for index, block in enumerate(blocks, begin):
            self._at[block] = (run, index)
        run.blocks += len(blocks)
        run.alive += len(blocks)
        run.kept += len(blocks)
        self.tokens += len(blocks) * block_tokens
        return run, run.blocks

    def _lose(self, block: Block) -> int:
        """Tokens that are lost with it."""
        known = self._at.pop(block, None)
        if known is None:
            return 0
        run, index = known
        run.alive = min(run.alive, index)
        run.kept -= 1
        self.tokens -= run.block_tokens
        for session in run.owners:
            self._changed[session] = None
        if not run.kept:
            for session in run.owners:
                owned = self._owned[session]
                owned.pop(run, None)
                if not owned:
                    del self._owned[session]
            run.owners.clear()
        return run.block_tokens

    def _own(self, session: str, end: tuple[_Run, int]) -> None:
        """All from the beginning of the context up to ``end`` is held for the session, too."""
        owned = self._owned.setdefault(session, {})
        at: tuple[_Run, int] | None = end
        while at is not None:
            run, blocks = at
            if run.owners.get(session, 0) >= blocks:
                break
            if run.kept:
                run.owners[session] = blocks
                owned[run] = None
            at = run.parent
        self._changed[session] = None
        if not owned:
            del self._owned[session]
