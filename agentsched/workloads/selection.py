"""Choosing among scripts: parts of a trace, and programs drawn from it.

A piece whose key begins with a program's name and a slash is that program's own: ``draw`` renames it
with the program, while all other pieces stay shared between copies.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice

from agentsched.workloads.scripts import Piece, Script, Turn
from agentsched.workloads.sessions import TraceError

HUMAN_PACED = frozenset({"kv-cache-tester"})
TOOL_PACED = frozenset({"agentcgroup-haiku", "agentcgroup-18tasks"})
HUMAN_FINAL_TOKENS = 128_000


def roots(scripts: Sequence[Script]) -> list[Script]:
    """The programs that no other program starts."""
    started = {name for script in scripts for turn in script.turns for name in turn.agents}
    return [script for script in scripts if script.program not in started]


def family(root: Script, by_name: dict[str, Script]) -> list[Script]:
    """A program, its sub-agents and theirs."""
    members = [root]
    for member in members:
        members += (by_name[name] for turn in member.turns for name in turn.agents)
    return members


def select(scripts: Sequence[Script], keep: Callable[[Script], bool]) -> list[Script]:
    """The root programs that ``keep`` likes, with their sub-agents."""
    by_name = {script.program: script for script in scripts}
    return [member for root in roots(scripts) if keep(root) for member in family(root, by_name)]


def tool_paced(scripts: Sequence[Script]) -> list[Script]:
    """Agents whose gaps are tools alone, with names and trustworthy times."""
    return select(scripts, lambda script: script.source in TOOL_PACED)


def human_paced(scripts: Sequence[Script]) -> list[Script]:
    """Sessions with people in their gaps whose final context is at most 128,000 tokens."""

    def fits(script: Script) -> bool:
        final = script.contexts()[-1] + script.turns[-1].output_tokens
        return script.source in HUMAN_PACED and final <= HUMAN_FINAL_TOKENS

    return select(scripts, fits)


def drawing(scripts: Sequence[Script], seed: int) -> Iterator[list[Script]]:
    """Root programs drawn with replacement, without end, each first among copies of its sub-agents.

    The n-th is named ``p<n>-<program>``.
    """
    choices, by_name = roots(scripts), {script.program: script for script in scripts}
    if not choices:
        raise TraceError("there is no program to draw from; every session was left out")
    rng = random.Random(seed)
    for number in count():
        members = family(rng.choice(choices), by_name)
        names = {member.program: f"p{number:05d}-{member.program}" for member in members}
        yield [_renamed(member, names) for member in members]


def draw(scripts: Sequence[Script], programs: int, seed: int) -> list[Script]:
    """The first ``programs`` root programs of ``drawing``, with their sub-agents."""
    return [member for members in islice(drawing(scripts, seed), programs) for member in members]


def _renamed(script: Script, names: dict[str, str]) -> Script:
    def piece(old: Piece) -> Piece:
        owner, slash, what = old.key.rpartition("/")
        return Piece(names[owner] + slash + what, old.tokens) if owner in names else old

    def turn(old: Turn) -> Turn:
        if not old.agents and not old.pieces:
            return old
        return replace(
            old, agents=tuple(names[name] for name in old.agents), pieces=tuple(map(piece, old.pieces))
        )

    return replace(
        script,
        program=names[script.program],
        turns=tuple(map(turn, script.turns)),
        prefix=tuple(map(piece, script.prefix)),
    )
