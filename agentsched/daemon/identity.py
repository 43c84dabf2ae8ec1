"""Whose call is this? Program identity from what unmodified clients send.

Signals, the strongest first:

1. an id that the client states;
2. ids of tool calls that we minted: every client returns them byte for byte, in a message's
   ``tool_calls`` or ``tool_call_id``, some only inside the text of an assistant's message;
3. the conversation so far: the call continues the program whose last prompt, and the answer that we
   gave to it, are the longest strict prefix of its messages;
4. nothing: a new program. Two equal first calls are two programs.

A retry looks like a second copy of a call. It belongs to the program of the first copy if that
program is known by 1 or 2; if it continues a conversation that the first copy has claimed; or if the
first copy was given up before it had an answer, so that nobody else can be its program.

Pure logic: no I/O, no clock. Memory is bounded: what was not used for longest is forgotten, and a
client that comes back after that is a new program.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from agentsched.engines.frontend import ChatRequest

Message = dict[str, Any]

_MINTED = re.compile(r"call_[A-Za-z0-9_-]{22}")
# Clients may append to our text before they return it; a short text alone would match by chance.
_MIN_PREFIX_CHARS = 32
_encoder = msgspec.json.Encoder(order="deterministic")


@dataclass(slots=True)
class Minted:
    """A tool call that we gave an id: by which call of which program, and whether its result came."""

    program: str
    call: str
    answered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What identity needs of a request. ``digest`` is ``call_digest`` of it; ``retry`` says that
    the client itself calls this a retry."""

    messages: list[Message]
    digest: bytes
    stated: str | None = None
    retry: bool = False


@dataclass(slots=True)
class _Turn:
    """The end of a program's conversation: the answer after a prompt. ``claimed`` is the digest of
    the live call that continues it."""

    program: str
    text_chars: int
    text_hash: bytes
    claimed: bytes | None = None

    def continued_by(self, message: Message) -> bool:
        text = _text(message)
        whole = len(text) == self.text_chars
        if not whole and (self.text_chars < _MIN_PREFIX_CHARS or len(text) < self.text_chars):
            return False
        return _hash(text[: self.text_chars].encode("utf-8", "surrogatepass")) == self.text_hash


@dataclass(slots=True)
class Claim:
    """A call's tie to its program, until ``answered`` or ``given_up`` ends it.

    ``answers``: tool calls of ours whose results are new in this call. ``known_by`` is the signal.
    """

    program: str
    known_by: str
    answers: tuple[str, ...]
    digest: bytes
    chain: bytes
    turn: _Turn | None = field(default=None, repr=False)


K = TypeVar("K")
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """A table of at most ``limit`` entries that forgets what was not used for longest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: K) -> V:
        self._entries.move_to_end(key)
        return self._entries[key]

    def __setitem__(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def get(self, key: K) -> V | None:
        return self[key] if key in self._entries else None

    def pop(self, key: K) -> V | None:
        return self._entries.pop(key, None)


class Identities:
    """Knows programs by their conversations. ``remembered`` bounds each of its tables."""

    def __init__(
        self, *, remembered: int = 100_000, new_program: Callable[[], str] = lambda: str(uuid.uuid4())
    ) -> None:
        self._new_program = new_program
        self._minted: _Recent[str, Minted] = _Recent(remembered)
        self._turns: _Recent[bytes, list[_Turn]] = _Recent(remembered)
        self._last_turn: _Recent[str, tuple[bytes, _Turn]] = _Recent(remembered)
        self._opening: dict[bytes, list[str]] = {}  # live first calls, by digest
        self._given_up: _Recent[bytes, list[str]] = _Recent(remembered)

    def resolve(self, ask: Ask) -> Claim:
        """Find the call's program, or make one up.

        A claim is ended once, with its call. The claim of a retry that attaches to a live call is not
        ended: it says the same as that call's.
        """
        chains = _chains(ask.messages)
        ids, in_text = self._known_ids(ask.messages)
        turn = None
        if ask.stated is not None:
            program, known_by = ask.stated, "stated"
        elif ids:
            program, known_by = self._minted[ids[-1]].program, "tool text" if in_text else "tool call"
        elif (turn := self._continued(ask, chains)) is not None:
            program, known_by = turn.program, "conversation"
        else:
            program, known_by = self._first(ask)
        new = tuple(i for i in ids if self._minted[i].program == program and not self._minted[i].answered)
        return Claim(program, known_by, new, ask.digest, chains[-1], turn)

    def mint(self, program: str, call: str) -> str:
        """A new tool call id that leads back to the program."""
        tool_call = f"call_{secrets.token_urlsafe(16)}"
        self._minted[tool_call] = Minted(program, call)
        return tool_call

    def minted(self, tool_call: str) -> Minted | None:
        """Which call asked for this tool call, if we minted its id and still know."""
        return self._minted.get(tool_call)

    def answered(self, claim: Claim, text: str) -> None:
        """The call ended well with this text: its program's conversation goes on from there."""
        self._end(claim)
        for tool_call in claim.answers:
            if (minted := self._minted.get(tool_call)) is not None:
                minted.answered = True
        if (old := self._last_turn.pop(claim.program)) is not None:
            self._drop_turn(*old)
        turn = _Turn(claim.program, len(text), _hash(text.encode("utf-8", "surrogatepass")))
        self._last_turn[claim.program] = (claim.chain, turn)
        self._turns[claim.chain] = [*(self._turns.get(claim.chain) or ()), turn]

    def left(self, claim: Claim) -> None:
        """Nobody waits for the call any more: the same call may come again, for the same program."""
        if claim.known_by == "new":
            programs = self._given_up.get(claim.digest) or []
            if claim.program not in programs:
                self._given_up[claim.digest] = [*programs, claim.program]

    def given_up(self, claim: Claim) -> None:
        """The call ended without an answer."""
        self._end(claim)
        self.left(claim)

    def _end(self, claim: Claim) -> None:
        if claim.turn is not None:
            claim.turn.claimed = None
        opening = self._opening.get(claim.digest)
        if opening and claim.program in opening:
            opening.remove(claim.program)
            if not opening:
                del self._opening[claim.digest]

    def _known_ids(self, messages: Iterable[Message]) -> tuple[list[str], bool]:
        """Ids of ours in the messages, in order; and whether they had to be read out of texts."""
        plain, texts = [], []
        for message in messages:
            found = [message.get("tool_call_id")]
            found += [c.get("id") for c in message.get("tool_calls") or () if isinstance(c, dict)]
            plain += [i for i in found if isinstance(i, str) and i in self._minted]
            if message.get("role") == "assistant":
                texts += [i for i in _MINTED.findall(_text(message)) if i in self._minted]
        return list(dict.fromkeys(plain or texts)), not plain

    def _continued(self, ask: Ask, chains: list[bytes]) -> _Turn | None:
        for index in range(len(ask.messages) - 1, 0, -1):
            message = ask.messages[index]
            if message.get("role") != "assistant":
                continue
            turns = [t for t in self._turns.get(chains[index]) or () if t.continued_by(message)]
            copies = [t for t in turns if t.claimed == ask.digest]
            free = [t for t in turns if t.claimed is None]
            # Equal conversations of several programs: each continuation takes one that is free.
            order = copies + free if ask.retry else free + copies
            if order:
                order[0].claimed = ask.digest
                return order[0]
        return None

    def _first(self, ask: Ask) -> tuple[str, str]:
        opening = self._opening.setdefault(ask.digest, [])
        given_up = self._given_up.get(ask.digest)
        if given_up:
            program = given_up.pop(0)
        elif ask.retry and len(opening) == 1:
            return opening[0], "retry"
        else:
            program = self._new_program()
        if program not in opening:
            opening.append(program)
        return program, "new"

    def _drop_turn(self, chain: bytes, turn: _Turn) -> None:
        left = [other for other in self._turns.get(chain) or () if other is not turn]
        if left:
            self._turns[chain] = left
        else:
            self._turns.pop(chain)


def call_digest(chat: ChatRequest, stop: Sequence[str] = ()) -> bytes:
    """Canonical hash of what is asked: equal for a retry, by whatever API and transport it comes."""
    return _hash(_encoder.encode([chat, stop]))


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _chains(messages: list[Message]) -> list[bytes]:
    """``chains[n]`` identifies the first n messages."""
    chains = [b""]
    for message in messages:
        chains.append(_hash(chains[-1] + _encoder.encode(_normalised(message))))
    return chains


def _normalised(message: Message) -> list[Any]:
    """What two copies of a message have in common: clients add keys of their own, write empty
    contents in three ways, and a text as a list of parts."""
    calls = [
        [
            call.get("id"),
            (call.get("function") or {}).get("name"),
            (call.get("function") or {}).get("arguments"),
        ]
        for call in message.get("tool_calls") or ()
        if isinstance(call, dict)
    ]
    return [message.get("role"), message.get("name"), message.get("tool_call_id"), _text(message), calls]


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part) for part in content)
    return ""


def _part(part: Any) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part, dict):
        part = {key: value for key, value in part.items() if key != "cache_control"}
    return _encoder.encode(part).decode()
