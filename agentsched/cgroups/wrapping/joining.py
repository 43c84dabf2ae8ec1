"""Which tool call of the model is this command? By its text, and by the time: pure logic.

The model says ``{"command": "cd x && pytest -q"}``; what is executed is ``bash -lc 'cd x && pytest -q'``, or
``bash -c "source ... && eval 'cd x && pytest -q' < /dev/null && pwd -P >| ..."``. So both are unwrapped as
far as quotes can be read, and compared without regard to white space. A command comes after it was asked
for, and no tool call is taken twice. Of equal ones the one that was asked for first is taken: a guess.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agentsched.cgroups.commands import is_script

LATE_S = 0.25
"""A tool call that is said to have been asked for so long after its command began may be its all the same:
clients may begin before an answer has ended."""

_FIELDS = ("command", "cmd", "script", "code")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "ash"})
_DEEPEST = 4
_WITHIN = 1
_LEAST_CONTAINED = 12
_LEAST_CUT = 32
_MOST_CHARS = 1 << 17
_MOST_SPLIT = 1 << 14
_CD = re.compile(r"""\s*cd\s+(?:[^\s'"&;|]+|'[^']*'|"[^"]*")+\s*(?:&&|;)\s*""")
_SPACE = re.compile(r"\s+")
_NO_INPUT = re.compile(r"\s*<\s*/dev/null")


@dataclass(frozen=True, slots=True)
class Asked:
    """A tool call that a model asked for. ``asked_s``: not before this, ``result_s``: its result came not
    after this, if it did; both on the clock of the commands' begins."""

    tool_call: str
    tool: str
    arguments: str
    asked_s: float
    result_s: float | None = None

    def may_be(self, began_s: float) -> bool:
        """Whether a command that began then may be its."""
        return self.asked_s <= began_s + LATE_S and (self.result_s is None or self.result_s >= began_s)


class Ran(NamedTuple):
    """What a process executed; ``whole``: all of its words, in full."""

    words: tuple[str, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Match:
    """The tool call of a command, the command as the model wrote it, and by what it was known."""

    asked: Asked
    text: str
    ran: Ran


class Joins:
    """Of one run: which tool calls have found their commands."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def find(
        self, ran: Sequence[Ran], began_s: float, asked: Sequence[Asked], *, sure: bool = False
    ) -> Match | None:
        """The tool call of a command that began then and executed these in turn, among ``asked``; it is taken
        from now on. ``sure``: not one whose text only stands somewhere within: what the command becomes
        next may tell better."""
        heard = [(each, list(_texts(each.words))) for each in ran]
        best: tuple[tuple[int, int, float], Match] | None = None
        for each in asked:
            text = command_of(each.arguments)
            if text is None or each.tool_call in self._taken or not each.may_be(began_s):
                continue
            alike, by = max(
                ((_alike(text, texts, one.whole), one) for one, texts in heard), key=lambda pair: pair[0]
            )
            if alike <= (_WITHIN if sure else 0):
                continue
            # of several that stand within, the longest leaves least unexplained
            rank = (-alike, -len(text) if alike == _WITHIN else 0, each.asked_s)
            if best is None or rank < best[0]:
                best = rank, Match(each, text, by)
        if best is None:
            return None
        self._taken.add(best[1].asked.tool_call)
        return best[1]


def command_of(arguments: str) -> str | None:
    """The command in the arguments of a tool call, whatever its client calls it; None if there is none."""
    try:
        said = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    for field in _FIELDS:
        value = said.get(field)
        if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
            return str(value[2]) if is_script(value) else shlex.join(value)
        if isinstance(value, str) and value.strip():
            return value
    return None


def _alike(text: str, ran: Sequence[str], whole: bool) -> int:
    """3: the same; 2: the same but for what leads to it; _WITHIN: it stands in what runs; 0: another one."""
    said = _plain(text)
    if not said:
        return 0
    heard = [_plain(each) for each in ran]
    if said in heard:
        return 3
    if set(map(_plain, _unwrapped(text))) & set(heard):
        return 2
    if not whole and any(_cut_within(said, each) for each in heard):
        return 2
    if len(said) >= _LEAST_CONTAINED and any(_stands_in(said, each) for each in heard):
        return _WITHIN
    return 0


def _stands_in(part: str, text: str) -> bool:
    """Within, and not as a part of a longer word."""
    return re.search(rf"(?<![\w./-]){re.escape(part)}(?![\w./-])", text) is not None


def _cut_within(said: str, heard: str) -> bool:
    """Whether what was cut off goes on, from some place to its end, as this begins."""
    at = heard.find(said[:_LEAST_CUT]) if len(said) >= _LEAST_CUT else -1
    return at >= 0 and said.startswith(heard[at:])


def _plain(text: str) -> str:
    return _SPACE.sub(" ", _NO_INPUT.sub("", text)).strip().rstrip(";").strip()


def _texts(words: Sequence[str]) -> Iterator[str]:
    """What a process runs, as texts: a shell's script, or its words as one would write them."""
    script = _script(words)
    if script is not None:
        yield from _unwrapped(script[:_MOST_CHARS])
    elif words:
        yield shlex.join(words)
        yield " ".join((os.path.basename(words[0]), *words[1:]))


def _script(words: Sequence[str]) -> str | None:
    """The script on a shell's command line: ``bash -c -l TEXT`` and ``bash -lc TEXT``."""
    if not words or os.path.basename(words[0]).lstrip("-") not in _SHELLS:
        return None
    flags = 1
    while flags < len(words) and words[flags][:1] in ("-", "+") and len(words[flags]) > 1:
        flags += 1
    says = any("c" in flag[1:] for flag in words[1:flags] if not flag.startswith("--"))
    return words[flags] if says and flags < len(words) else None


def _unwrapped(text: str, depth: int = 0) -> Iterator[str]:
    """The text, and what it runs in the end: behind ``cd``, in ``eval``, in a shell of its own."""
    yield text
    if depth >= _DEEPEST:
        return
    if (lead := _CD.match(text)) is not None:
        yield from _unwrapped(text[lead.end() :], depth + 1)
    if len(text) > _MOST_SPLIT:
        return  # that takes long, and what stands in it is found all the same
    try:
        words = shlex.split(text)
    except ValueError:
        return  # quotes that this does not understand
    if (script := _script(words)) is not None:
        yield from _unwrapped(script, depth + 1)
    for place, word in enumerate(words[:-1]):
        inner = (
            words[place + 1] if word == "eval" else _script(words[place + 1 :]) if word == "exec" else None
        )
        if inner is not None:
            yield from _unwrapped(inner, depth + 1)
