"""Which tokens programs have in common, and for how long each such run of tokens must be held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentsched.workloads.bounds.contexts import BoundsError, Path, Tree, TurnPath


@dataclass(slots=True)
class _Use:
    """``longest`` and ``shared``: the most tokens of a stem that one program has, and that two have.
    ``busy_s`` and ``private``: seconds by program, and private token-seconds of all, in which a program
    holds all that is shared here."""

    longest: int = 0
    longest_of: str = ""
    shared: int = 0
    busy_s: dict[str, float] = field(default_factory=dict)
    private: float = 0.0


class Sharing:
    """What is shared among the contexts of programs: heads of stems that two programs have at least."""

    def __init__(self, paths: Mapping[str, Sequence[TurnPath]]) -> None:
        self._tree: Tree[_Use] = Tree(_Use)
        for program, turns in paths.items():
            for turn in turns:
                for stem, tokens in self._tree.along(turn.context):
                    self._meet(stem.notes, program, tokens)

    @staticmethod
    def _meet(use: _Use, program: str, tokens: int) -> None:
        if program == use.longest_of:
            use.longest = max(use.longest, tokens)
        elif tokens > use.longest:
            use.shared, use.longest, use.longest_of = use.longest, tokens, program
        else:
            use.shared = max(use.shared, tokens)

    def private_tokens(self, path: Path) -> int:
        """Tokens of the context that no other program's context has."""
        return sum(max(0, tokens - stem.notes.shared) for stem, tokens in self._tree.along(path))

    def hold(self, program: str, path: Path, seconds: float, private: float) -> None:
        """The program holds this context for so long, and so many private token-seconds with it."""
        for stem, tokens in self._tree.along(path):
            use = stem.notes
            if use.shared and tokens >= use.shared:
                use.busy_s[program] = use.busy_s.get(program, 0.0) + seconds
                use.private += private

    def token_seconds(self, capacity_tokens: int) -> float:
        """The least token-seconds, over all engines, that shared tokens are held for.

        A shared run of s tokens that ends at position d of its contexts is held for T seconds. T is no
        less than any one program holds it, nor than (private token-seconds held with it) / (capacity -
        d): beside those d tokens no more private ones fit at a time. It is no less either than for any
        run behind it, which is no use without it.
        """
        order = [self._tree.root]
        for stem in order:  # grows as it goes: parents before children
            order.extend(child for child in stem.children.values() if child.notes.shared)
        held_s: dict[int, float] = {}
        total = 0.0
        for stem in reversed(order[1:]):
            use, end = stem.notes, stem.start + stem.notes.shared
            if end >= capacity_tokens and use.private:
                raise BoundsError(f"{end} shared tokens leave no room in a capacity of {capacity_tokens}")
            beside = use.private / (capacity_tokens - end) if use.private else 0.0
            behind = (held_s[id(child)] for child in stem.children.values() if child.notes.shared)
            held_s[id(stem)] = max([*use.busy_s.values(), beside, *behind])
            total += use.shared * held_s[id(stem)]
        return total
