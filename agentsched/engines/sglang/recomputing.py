"""What calls compute again although the tree had held it once.

Of what is evicted a program remembers where it lay in its context, and the last tokens of it: a later call
that has the same tokens there, and does not find them cached, computes them again. Contexts lose their tails
first, piece by piece, so pieces that follow one another are one memory. Whose nodes nobody owned are not
remembered, nor what a program that never had them shares with one that lost them.
"""

from __future__ import annotations

from collections.abc import Sequence

LAST_TOKENS = 16
"""By which what is computed is known to be what was lost."""

PROGRAMS, PIECES = 10_000, 16
"""So many are remembered, the latest; and of each so many pieces."""

Piece = tuple[int, tuple[int, ...]]
"""Where it ends in the context, and its last tokens there."""


class Lost:
    """What programs lost."""

    def __init__(self) -> None:
        self._of: dict[str, dict[int, Piece]] = {}

    def note(self, program: str, start: int, end: int, last: Sequence[int]) -> None:
        """The tokens from ``start`` to ``end`` of its context went; the ``last`` of them are these."""
        pieces = self._of.pop(program, {})
        # What lay right behind it went before: the two are one.
        piece = pieces.pop(end, (end, tuple(last)))
        pieces[start] = piece
        if len(pieces) > PIECES:
            del pieces[next(iter(pieces))]
        self._of[program] = pieces
        if len(self._of) > PROGRAMS:
            del self._of[next(iter(self._of))]

    def recomputed(self, program: str, context: Sequence[int], start: int, end: int) -> int:
        """How many of the tokens from ``start`` to ``end``, which are computed now, had been there."""
        pieces = self._of.get(program)
        if not pieces:
            return 0
        reach = max((to for to, last in pieces.values() if _has(context, to, last)), default=0)
        return max(0, min(reach, end) - start)


def _has(context: Sequence[int], end: int, last: tuple[int, ...]) -> bool:
    return len(context) >= end and tuple(context[end - len(last) : end]) == last
