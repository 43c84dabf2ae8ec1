"""Conversations by their content: which program's does a call continue, and where does one branch off?

A program's conversation is a chain of turns: a prompt, and the answer that we gave. A call continues the
turn whose prompt and answer are the longest strict prefix of its messages. What was said after a turn
stays known, so it shows whether a call goes on at the end of a conversation, or from the middle of it
on another way: a fork. Two programs may have equal turns, as two runs of one task begin: of those each
continuation takes one that nobody has gone on from.

When a history has been rewritten, no prefix of it is known. Then a program is still known by its own
words: the newest answer in the conversation, or an answer (a summary, usually) that a message quotes in
full.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec

from agentsched.daemon.recent import Recent
from agentsched.daemon.talks import Message, Talk, digest, text_of

# Clients may append to our text before they return it; a short text alone would match by chance.
_MIN_PREFIX_CHARS = 32
# So much of an answer finds it in another text; shorter answers are not looked for.
_OPENING_CHARS = 48
_MOST_ALIKE = 1024
"""Answers to one prompt that are told apart: programs with the same task, mostly."""

_QUOTE_START = re.compile(r"(?:\A|[\n>:\"])\s*(?=\S)")
_MOST_STARTS = 500


class Turn(msgspec.Struct, gc=False):
    """An answer of a program, after the prompt of this chain. ``claimed`` is the digest of the live call
    that continues it; ``next_prompt`` the chain of the prompt that did."""

    program: str
    prompt: bytes
    text_chars: int
    text_hash: bytes
    claimed: bytes | None = None
    next_prompt: bytes | None = None

    def is_said_by(self, said: _Said) -> bool:
        """Whether a message is this answer, or begins with it."""
        whole = len(said.text) == self.text_chars
        if not whole and (self.text_chars < _MIN_PREFIX_CHARS or len(said.text) < self.text_chars):
            return False
        return said.beginning(self.text_chars) == self.text_hash


class _Said:
    """A message's text, whose beginnings are hashed once each."""

    def __init__(self, message: Message) -> None:
        self.text = text_of(message).strip()
        self._beginnings: dict[int, bytes] = {}

    def beginning(self, chars: int) -> bytes:
        if chars not in self._beginnings:
            self._beginnings[chars] = digest(self.text[:chars])
        return self._beginnings[chars]


@dataclass(frozen=True, slots=True)
class Found:
    """The turn that a call continues. ``fork``: others have gone on from there already, another way."""

    turn: Turn
    fork: bool


class Conversations:
    """The turns of all programs. ``remembered`` bounds each table."""

    def __init__(self, remembered: int) -> None:
        self.turns: Recent[bytes, tuple[Turn, ...]] = Recent(remembered)
        self.openings: Recent[bytes, Turn] = Recent(remembered)

    def answered(self, program: str, prompt: bytes, text: str) -> None:
        """The program got this answer to the prompt."""
        text = text.strip()
        # One name for all of a program's turns.
        turn = Turn(sys.intern(program), prompt, len(text), digest(text))
        turns = (*(self.turns.get(prompt) or ()), turn)
        self.turns[prompt] = turns[-_MOST_ALIKE:]
        if len(text) >= _OPENING_CHARS:
            self.openings[digest(text[:_OPENING_CHARS])] = turn

    def went_on(self, turn: Turn, prompt: bytes) -> None:
        """The call with this prompt, which continued the turn, was answered."""
        turn.next_prompt = prompt
        self.turns.touch(turn.prompt)

    def recover(self) -> None:
        """Calls that were live in an earlier life are so no more."""
        for turns in self.turns.values():
            for turn in turns:
                turn.claimed = None

    def continued(
        self, talk: Talk, call: bytes, *, retry: bool, allowed: Callable[[str], bool]
    ) -> Found | None:
        """What the call with digest ``call`` continues, among the programs that are ``allowed``."""
        for message, prompt in talk.answers():
            known = self.turns.get(prompt) or ()
            said = _Said(message)
            turns = [t for t in known if t.is_said_by(said) and allowed(t.program)]
            if turns:
                return _choice(turns, known, talk, call, retry=retry)
        return None

    def recalled(self, talk: Talk, allowed: Callable[[str], bool]) -> str | None:
        """The program whose words are in a history that was rewritten."""
        for message in reversed(talk.messages):
            text = text_of(message)
            if message.get("role") == "assistant":
                program = self._quoted(text, 0, allowed)
                return program if program is not None else self._quoted_anywhere(talk, allowed)
        return self._quoted_anywhere(talk, allowed)

    def _quoted_anywhere(self, talk: Talk, allowed: Callable[[str], bool]) -> str | None:
        for message in talk.messages[:8]:
            if message.get("role") == "assistant":
                continue
            text = text_of(message)
            for start in islice(_QUOTE_START.finditer(text), _MOST_STARTS):
                if (program := self._quoted(text, start.end(), allowed)) is not None:
                    return program
        return None

    def _quoted(self, text: str, at: int, allowed: Callable[[str], bool]) -> str | None:
        if len(text) - at < _OPENING_CHARS:
            return None
        turn = self.openings.get(digest(text[at : at + _OPENING_CHARS]))
        if turn is None or not allowed(turn.program):
            return None
        return turn.program if digest(text[at : at + turn.text_chars]) == turn.text_hash else None


def _choice(turns: list[Turn], known: Sequence[Turn], talk: Talk, call: bytes, *, retry: bool) -> Found:
    # Who has gone on another way than this call does, from this answer or from another one to the prompt.
    gone = {t.program for t in known if t.next_prompt is not None and t.next_prompt not in talk.chains}
    copies = [t for t in turns if t.claimed == call]
    free = [t for t in turns if t.claimed is None and t.program not in gone]
    free.sort(key=lambda t: t.next_prompt is not None)  # one that nobody has gone on from, if there is one
    order = copies + free if retry else free + copies
    return Found(order[0], fork=False) if order else Found(turns[-1], fork=True)
