"""Programs made smaller, for engines that could not compute them as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import starmap

from agentsched.workloads.scripts import Piece, Script, Turn


def scaled(scripts: Iterable[Script], *, tokens: float, gaps: float) -> list[Script]:
    """The scripts with all their tokens divided by ``tokens`` and all their gaps by ``gaps``.

    What would come to nothing stays one token. Who shares what with whom stays as it is.
    """
    return [_script(script, tokens, gaps) for script in scripts]


def _script(script: Script, tokens: float, gaps: float) -> Script:
    prefix = _pieces(script.prefix, tokens)
    least = sum(piece.tokens for piece in prefix) + 1

    def turn(index: int, old: Turn) -> Turn:
        anew = old.fresh or not index
        return replace(
            old,
            new_tokens=max(least if anew else 1, _whole(old.new_tokens, tokens)),
            output_tokens=_whole(old.output_tokens, tokens),
            gap_s=old.gap_s / gaps,
            pieces=_pieces(old.pieces, tokens),
        )

    return replace(script, prefix=prefix, turns=tuple(starmap(turn, enumerate(script.turns))))


def _pieces(pieces: Iterable[Piece], tokens: float) -> tuple[Piece, ...]:
    return tuple(Piece(piece.key, _whole(piece.tokens, tokens)) for piece in pieces)


def _whole(count: int, divisor: float) -> int:
    return max(1, round(count / divisor))
