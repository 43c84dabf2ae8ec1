"""What the daemon needs of an API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentsched.daemon.answers import Ending, Piece, Usage
from agentsched.daemon.errors import ApiError
from agentsched.engines.frontend import ChatRequest


class Writer(Protocol):
    """Writes one answer for one client: either ``whole``, or ``begin``, ``piece`` as often as need be, and
    then ``end`` or ``fail``. ``ping`` may come anywhere before the last, and ``fail`` first."""

    def whole(self, pieces: Sequence[Piece], ending: Ending) -> bytes:
        """The body of an answer that is not streamed."""
        ...

    def begin(self, usage: Usage) -> bytes:
        """What opens a stream. ``usage`` is as known now, without output."""
        ...

    def ping(self) -> bytes:
        """A sign of life that no client takes for part of an answer, and every client for one of life."""
        ...

    def piece(self, piece: Piece) -> bytes: ...

    def end(self, ending: Ending) -> bytes: ...

    def fail(self, error: ApiError) -> bytes:
        """What ends a stream that cannot go on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked request. ``raw`` is the body as it came.

    ``fields[i]`` is where the client wrote ``chat.messages[i]``, for what is said of that message.
    ``writer`` takes the call's name and the time in Unix seconds.
    """

    chat: ChatRequest
    raw: dict[str, Any]
    writer: Callable[[str, int], Writer]
    stop: tuple[str, ...] = ()
    stream: bool = False
    fields: tuple[str, ...] = ()


class Api(Protocol):
    """One API."""

    path: str

    def read(self, data: bytes) -> Request:
        """Check a request's body. Raises ``ApiError`` (400) that names the field at fault."""
        ...

    def error(self, error: ApiError) -> bytes:
        """The body of an answer that is an error."""
        ...
