"""What daemon and engine process say to each other, and how it is cut into bytes.

One frame is a length (4 bytes, big end first) and as many bytes of msgpack: a list of messages, so
that all that came of a step travels together. The messages are tagged structs; those of the engine
are the items of ``EngineOutput`` and two more. The codec does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from agentsched import __version__
from agentsched.core.decisions import EngineOrder
from agentsched.core.events import PROTOCOL
from agentsched.engines.contract import Capabilities, EngineError, EngineOutput, GenerateRequest

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Far above any real frame (a prompt of a million tokens takes 5 MB): a larger length is garbage."""

_LENGTH_BYTES = 4


class WireError(EngineError):
    """The other side sent what is no message of ours: versions differ, or something else wrote there."""


class Message(msgspec.Struct, frozen=True, tag_field="event", tag=True):
    """Base of the messages that are not events; the tag field is the one that events have."""


class Submit(Message, frozen=True):
    request: GenerateRequest


class Abort(Message, frozen=True):
    call: str


class Orders(Message, frozen=True):
    orders: list[EngineOrder]


class Close(Message, frozen=True):
    """End now; running calls end with the process."""


class Hello(Message, frozen=True):
    """First message of an engine: it can take calls. A snapshot follows."""

    capabilities: Capabilities
    protocol: int = 0
    version: str = "older than 0.2"
    """Of the package."""

    life: str = ""
    """Another one is another process, which has none of the KV that the last one had."""


def hello(capabilities: Capabilities, *, life: str = "") -> Hello:
    """The first message of an engine of this installation."""
    return Hello(capabilities, PROTOCOL, __version__, life)


def check(hello: Hello) -> None:
    """Raises ``WireError`` if the engine speaks another protocol than we do."""
    if hello.protocol != PROTOCOL:
        raise WireError(
            f"the engine is of agentsched {hello.version} and speaks protocol {hello.protocol}, this daemon "
            f"is of {__version__} and speaks {PROTOCOL}; install the same version for both"
        )


class Refused(Message, frozen=True):
    """The answer to a ``Submit`` that cannot be served."""

    call: str
    reason: str


ToEngine = Submit | Abort | Orders | Close
ToDaemon = Hello | Refused | EngineOutput

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(list[ToEngine])
_to_daemon = msgspec.msgpack.Decoder(list[ToDaemon])


def encode(messages: Sequence[ToEngine] | Sequence[ToDaemon]) -> bytes:
    """One frame. Raises ``WireError`` if it were too large to be read."""
    frame = bytearray(_LENGTH_BYTES)
    _encoder.encode_into(messages, frame, _LENGTH_BYTES)
    size = len(frame) - _LENGTH_BYTES
    if size > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
    frame[:_LENGTH_BYTES] = size.to_bytes(_LENGTH_BYTES, "big")
    return bytes(frame)


class Frames:
    """Cuts a byte stream into frames and decodes them. One side of one connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def for_engine(self, data: bytes) -> list[ToEngine]:
        """The messages that ``data`` completes, in order. Raises ``WireError``."""
        try:
            return [message for frame in self._cut(data) for message in _to_engine.decode(frame)]
        except msgspec.DecodeError as error:
            raise WireError(f"not a message to an engine: {error}") from error

    def for_daemon(self, data: bytes) -> list[ToDaemon]:
        """The messages that ``data`` completes, in order. Raises ``WireError``."""
        try:
            return [message for frame in self._cut(data) for message in _to_daemon.decode(frame)]
        except msgspec.DecodeError as error:
            raise WireError(f"not a message to the daemon: {error}") from error

    def _cut(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if size > MAX_FRAME_BYTES:
                raise WireError(f"a frame says it has {size} bytes, over the limit of {MAX_FRAME_BYTES}")
            end = _LENGTH_BYTES + size
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[_LENGTH_BYTES:end])
            del self._buffer[:end]
            yield frame
