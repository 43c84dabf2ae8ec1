"""What contexts are made of, as paths of pieces, so that equal tokens are counted once.

A path spells a context from its start. The same key after the same path is the same text: the shorter
run is the head of the longer. A program's own text is one piece that grows from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

from agentsched.workloads.scripts import Piece, Script

Path = tuple[Piece, ...]

Notes = TypeVar("Notes")


class BoundsError(ValueError):
    """The input describes no run that could have been, so no bound follows from it."""


@dataclass(frozen=True, slots=True)
class TurnPath:
    """One call's contexts: ``prompt``, and ``context`` with the output behind it."""

    prompt: Path
    context: Path


@dataclass(slots=True)
class Stem(Generic[Notes]):
    """A piece in its place, at its longest: ``start`` is its first token's position in a context. Its
    children follow after so many tokens of it."""

    start: int
    notes: Notes
    children: dict[tuple[int, str], Stem[Notes]] = field(default_factory=dict)


class Tree(Generic[Notes]):
    """All contexts together, equal heads once; each stem has ``notes`` of whoever walks it."""

    def __init__(self, notes: Callable[[], Notes]) -> None:
        self._notes = notes
        self.root: Stem[Notes] = Stem(0, notes())

    def along(self, path: Path) -> Iterator[tuple[Stem[Notes], int]]:
        """The context's stems from its start, and its tokens in each; makes those that are new."""
        stem, attached, start = self.root, 0, 0
        for piece in path:
            child = stem.children.get((attached, piece.key))
            if child is None:
                child = stem.children[attached, piece.key] = Stem(start, self._notes())
            stem, attached = child, piece.tokens
            start += piece.tokens
            yield stem, piece.tokens


def tokens_of(path: Path) -> int:
    return sum(piece.tokens for piece in path)


def grown(path: Path, key: str, tokens: int) -> Path:
    """The path with ``tokens`` more of the text ``key`` at its end."""
    if not tokens:
        return path
    if path and path[-1].key == key:
        return (*path[:-1], Piece(key, path[-1].tokens + tokens))
    return (*path, Piece(key, tokens))


def without_last_token(path: Path) -> Path:
    """A context's last token is never in KV: an engine computes it to get the next one."""
    *head, last = path
    return (*head, Piece(last.key, last.tokens - 1)) if last.tokens > 1 else tuple(head)


def common_tokens(one: Path, other: Path) -> int:
    """How many tokens the two contexts have in common, from their start."""
    common = 0
    for left, right in zip(one, other, strict=False):
        if left.key != right.key:
            break
        common += min(left.tokens, right.tokens)
        if left.tokens != right.tokens:
            break
    return common


def turn_paths(script: Script) -> tuple[TurnPath, ...]:
    """The contexts of each of the script's calls.

    Raises ``BoundsError`` if a prompt is shorter than the script's prefix.
    """
    paths: list[TurnPath] = []
    context, chain = script.prefix, 0
    for index, turn in enumerate(script.turns):
        own = f"{script.program}#{chain}"
        if turn.pieces:
            prompt = turn.pieces
        elif index == 0 or turn.fresh:
            new_tokens = turn.new_tokens - script.prefix_tokens
            if new_tokens < 0:
                raise BoundsError(
                    f"{script.program}, turn {index}: new_tokens is {turn.new_tokens}, less than the "
                    f"prefix of {script.prefix_tokens} tokens, which it must include"
                )
            chain += 1
            own = f"{script.program}#{chain}"
            prompt = grown(script.prefix, own, new_tokens)
        else:
            prompt = grown(context, own, turn.new_tokens)
        if turn.pieces:
            # What follows a spelled prompt is text of its own: the next prompt is spelled anew.
            chain += 1
            own = f"{script.program}#{chain}"
        context = grown(prompt, own, turn.output_tokens)
        paths.append(TurnPath(prompt, context))
    return tuple(paths)


def seconds_away(
    scripts: Sequence[Script], call_s: Mapping[str, Sequence[float]]
) -> dict[str, tuple[float, ...]]:
    """The least each gap of each script lasts: its own time, and as long as any agent that it starts.

    Raises ``BoundsError`` if ``call_s`` lacks a call, or agents start each other in a ring.
    """
    by_name = {script.program: script for script in scripts}
    away: dict[str, tuple[float, ...]] = {}
    open_: set[str] = set()

    def visit(script: Script) -> None:
        if script.program in open_:
            raise BoundsError(f"script {script.program!r} starts itself, through its agents")
        check_calls(script, call_s)
        open_.add(script.program)
        gaps = []
        for turn in script.turns[:-1]:
            agents = [by_name[name] for name in turn.agents if name in by_name]
            for agent in agents:
                if agent.program not in away:
                    visit(agent)
            lives = (sum(call_s[a.program]) + sum(away[a.program]) for a in agents)
            gaps.append(max([turn.gap_s, *lives]))
        open_.discard(script.program)
        away[script.program] = tuple(gaps)

    for script in scripts:
        if script.program not in away:
            visit(script)
    return away


def check_calls(script: Script, call_s: Mapping[str, Sequence[float]]) -> None:
    """Raises ``BoundsError`` unless ``call_s`` has seconds for each call of the script."""
    given = call_s.get(script.program, ())
    if len(given) != len(script.turns):
        raise BoundsError(
            f"uncontended[{script.program!r}] has {len(given)} calls, the script has {len(script.turns)}"
        )
    if not all(0 <= seconds < float("inf") for seconds in given):
        raise BoundsError(f"uncontended[{script.program!r}] must be finite and >= 0, got {list(given)}")


def check_scripts(scripts: Iterable[Script], capacity_tokens: int, engines: int) -> list[Script]:
    """The scripts, if they can be run at all. Raises ``BoundsError`` naming what is wrong."""
    checked = list(scripts)
    if not checked:
        raise BoundsError("there are no scripts, so there is nothing to bound")
    if capacity_tokens < 1 or engines < 1:
        raise BoundsError(f"capacity_tokens and engines must be >= 1, got {capacity_tokens}, {engines}")
    names = sorted(script.program for script in checked)
    if twice := [name for name, following in pairwise(names) if name == following]:
        raise BoundsError(f"two scripts are called {twice[0]!r}")
    return checked


def check_fits(program: str, turns: Iterable[TurnPath], capacity_tokens: int) -> None:
    """Raises ``BoundsError`` if one prompt alone is over the capacity."""
    for index, turn in enumerate(turns):
        if tokens_of(turn.prompt) > capacity_tokens:
            raise BoundsError(
                f"{program!r}, turn {index}: the prompt of {tokens_of(turn.prompt)} tokens is over the "
                f"capacity of {capacity_tokens} tokens"
            )
