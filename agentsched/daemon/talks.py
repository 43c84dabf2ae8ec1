"""The messages of one call, read as far as it takes to know whose they are.

Agents send their whole conversation again with each call. Where its beginning was seen before, byte for byte,
all that identity needs of that is remembered (``Prefix``), and only what follows is read. Pieces (messages
as they came) are compared by XXH3, which reads them as fast as memory gives them. It begins with a secret of
this process: who does not know that cannot aim at two that are alike, and the chance that two are is 2**-64.
What two could confuse is one tenant's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from secrets import randbits
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from agentsched.daemon.errors import bad_field, invalid_json
from agentsched.daemon.recent import Recent

Message = dict[str, Any]

_encoder = msgspec.json.Encoder(order="deterministic")
_decode = msgspec.json.Decoder().decode
_MINTED = re.compile(r"call_[A-Za-z0-9_-]{22}")
_SYSTEM = ("system", "developer")

SECRET = randbits(64)
"""What every hash of this process begins with, unless it goes on from another one."""
MOST_KNOWN = 4096
FEW_PIECES = 8
"""Shorter calls are read as quickly as they are recognised."""


class Transcript:
    """Messages that are not read yet: ``pieces`` are JSON, the items of the request's ``field``, and ``read``
    makes messages of one. ``lead`` stands before them. ``keys[n]`` is equal where the first n pieces are, and
    all before them."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        read: Callable[[Message], Iterable[Message]],
        lead: Sequence[Message] = (),
        kind: str = "",
        field: str = "messages",
    ) -> None:
        self.pieces, self.lead = pieces, lead
        self._read = read
        self._field = field
        self.keys: list[int] = []
        if len(pieces) >= FEW_PIECES:
            key = xxh3_64_intdigest(_encoder.encode((kind, lead)), SECRET)
            self.keys = [key, *[key := xxh3_64_intdigest(piece, key) for piece in pieces]]

    def read(self, piece: int) -> Iterable[Message]:
        """Its messages. Raises ``ApiError`` (400)."""
        try:
            message = _decode(self.pieces[piece])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise invalid_json(error) from None
        if not isinstance(message, dict):
            raise bad_field(self._field, "must be a list of objects")
        return self._read(message)

    def first(self) -> Message:
        """What is said first, if anything is. Raises ``ApiError`` (400)."""
        if self.lead:
            return self.lead[0]
        return next(iter(self.read(0)), {}) if self.pieces else {}


class Prefix(msgspec.Struct, frozen=True):
    """The first ``pieces`` of a transcript, which are so many ``messages``. ``opens``: nothing is answered
    among them. ``system`` is the digest of what the system says before all others; ``ids``: of tool calls,
    in what comes after ``before``; ``in_text``: those that stand in texts."""

    pieces: int
    messages: int
    chain: bytes
    opens: bool
    system: bytes
    ids: tuple[str, ...]
    in_text: tuple[str, ...]
    before: Prefix | None


class Talk:
    """The messages of one call. ``known`` are the first of them, if they were seen before."""

    def __init__(self, transcript: Transcript, known: Prefix | None = None) -> None:
        self._transcript, self._known = transcript, known
        self._messages: list[Message] = []  # after what is known
        self._chains = [b"" if known is None else known.chain]
        self._ends: list[int] = []
        """How many of these messages there are after each piece."""
        self._ids: list[tuple[int, str]] = []
        self._in_text: list[tuple[int, str]] = []
        self._system: list[list[Any]] | None = None if known else []
        """Of the system, while nobody else has spoken."""
        self._system_digest = known.system if known else b""
        self._before = known
        self._spoke = -1 if known else math.inf
        """The first of these messages that is not the system's, if that has not come before."""
        self._answered: int | None = None
        """The first of these messages that is an answer."""
        begin = 0 if known is None else known.pieces
        if known is None and transcript.lead:
            self._add(transcript.lead)
        for piece in range(begin, len(transcript.pieces)):
            self._add(transcript.read(piece))
            self._ends.append(len(self._messages))
        if self._system is not None:
            self._end_system()

    def _add(self, messages: Iterable[Message]) -> None:
        chains = self._chains
        for message in messages:
            number, normalised = len(self._messages), _normalised(message)
            role, _, answers, text, calls = normalised
            if self._system is not None:
                if role in _SYSTEM:
                    self._system.append(normalised)
                else:
                    self._spoke = number
                    self._end_system()
            if role == "assistant":
                if self._answered is None:
                    self._answered = number
                self._in_text += [(number, found) for found in _MINTED.findall(text)]
            if calls or answers is not None:
                ids = (answers, *(call[0] for call in calls))
                self._ids += [(number, found) for found in ids if isinstance(found, str)]
            self._messages.append(message)
            chains.append(sha256(chains[-1] + _encoder.encode(normalised)).digest()[:16])

    def _end_system(self) -> None:
        if self._system is not None:
            self._system_digest, self._system = digest(_encoder.encode(self._system)), None

    @property
    def messages(self) -> Sequence[Message]:
        """All of them; reads what is known already once more."""
        return self._whole()._messages

    @property
    def chains(self) -> Sequence[bytes]:
        """``chains[n]`` identifies the first n messages. Reads as ``messages`` does."""
        return self._whole()._chains

    def _whole(self) -> Talk:
        if self._known is not None:
            whole = Talk(self._transcript)
            self._messages, self._chains, self._known = whole._messages, whole._chains, None
        return self

    @property
    def chain(self) -> bytes:
        """Identifies all of them."""
        return self._chains[-1]

    @property
    def opens(self) -> bool:
        """Whether nothing has been answered in it yet."""
        return self._answered is None and (self._known is None or self._known.opens)

    @property
    def system(self) -> bytes:
        """Digest of what stands before the first message that is not the system's."""
        return self._system_digest

    def answers(self) -> Iterator[tuple[Message, bytes]]:
        """What was answered after some prompt, the last first, with the chain of that prompt. Reads what is
        known already only if it comes to that."""
        known = self._known
        for index in range(len(self._messages) - 1, -1 if known else 0, -1):
            if self._messages[index].get("role") == "assistant":
                yield self._messages[index], self._chains[index]
        if known is not None and not known.opens:
            for index in range(known.messages - 1, 0, -1):
                if self.messages[index].get("role") == "assistant":
                    yield self.messages[index], self.chains[index]

    def tool_calls(self) -> tuple[list[str], list[str]]:
        """Ids of tool calls, in order: as such, and what may be one of ours in an answer's text."""
        if self._before is None and not self._ids and not self._in_text:
            return [], []
        ids, in_text = [i for _, i in self._ids], [i for _, i in self._in_text]
        before = self._before
        while before is not None:
            ids[:0], in_text[:0] = before.ids, before.in_text
            before = before.before
        return ids, in_text

    def prefixes(self) -> Iterator[tuple[int, Prefix]]:
        """What is worth knowing for the next call: all of this one, and all but its last piece; by key."""
        keys, start = self._transcript.keys, len(self._transcript.pieces) - len(self._ends)
        for pieces in (len(keys) - 2, len(keys) - 1):
            end = self._ends[pieces - start - 1] if pieces > start else 0
            known = self._before
            if end <= self._spoke or pieces <= start:
                continue
            yield (
                keys[pieces],
                Prefix(
                    pieces=pieces,
                    messages=end + (known.messages if known else 0),
                    chain=self._chains[end],
                    opens=(self._answered is None or self._answered >= end)
                    and (known is None or known.opens),
                    system=self._system_digest,
                    ids=tuple(i for number, i in self._ids if number < end),
                    in_text=tuple(i for number, i in self._in_text if number < end),
                    before=known if known and (known.ids or known.in_text or known.before) else None,
                ),
            )


class Beginnings:
    """Remembers what was read, of as many conversations as go on at a time."""

    def __init__(self) -> None:
        self._known: Recent[int, Prefix] = Recent(MOST_KNOWN)

    def read(self, transcript: Transcript) -> Talk:
        """Raises ``ApiError`` (400)."""
        if not transcript.keys:
            return Talk(transcript)
        known = (self._known.get(key) for key in reversed(transcript.keys))
        talk = Talk(transcript, next((prefix for prefix in known if prefix is not None), None))
        for key, prefix in talk.prefixes():
            self._known[key] = prefix
        return talk


def listed(messages: Sequence[Message], prompt: str | list[int] | None = None) -> Talk:
    """Of messages that were read before, or of a prompt without any."""
    if prompt is not None:
        text = prompt if isinstance(prompt, str) else _encoder.encode(prompt).decode()
        messages = [{"role": "user", "content": text}]
    return Talk(Transcript((), lambda message: (message,), messages))


def digest(data: bytes | str) -> bytes:
    """A short hash. JSON can carry half a surrogate pair."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return sha256(raw).digest()[:16]  # processors have instructions for it: twice as fast as others


def text_of(message: Message) -> str:
    """All text of a message."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(map(_part, content)) if isinstance(content, list) else ""


def _part(part: Any) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part, dict):
        part = {key: value for key, value in part.items() if key != "cache_control"}
    return _encoder.encode(part).decode()


def _normalised(message: Message) -> list[Any]:
    """What two copies of a message have in common: clients add keys of their own, write empty
    contents in three ways, and a text as a list of parts."""
    get = message.get
    asked, content = get("tool_calls"), get("content")
    calls = []
    if isinstance(asked, list):
        calls = [
            [
                call.get("id"),
                (function := _object(call.get("function"))).get("name"),
                function.get("arguments"),
            ]
            for call in asked
            if isinstance(call, dict)
        ]
    text = content if type(content) is str else text_of(message)
    return [get("role"), get("name"), get("tool_call_id"), text, calls]


def _object(value: Any) -> Message:
    return value if isinstance(value, dict) else {}
