"""What runtimes and the controller say to each other: one message a packet of a local socket, as JSON.

The socket is in Linux's abstract namespace: binding it is what makes a process *the* controller, and it is
free again the moment that process is gone. It is a user's own: both ends look whose the other is.
"""

from __future__ import annotations

import os
import socket
import struct

import msgspec

PROTOCOL = 1
NAME_VARIABLE = "AGENTSCHED_CONTROL_NAME"
"""Another name makes another controller: for tests and benchmarks."""

LONGEST = 1 << 16


class Began(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A call is about to run. ``leaf``: its v2 folder, by which it is known; ``folders``: by hierarchy.
    ``again``: it runs already, and another controller knew of it. The rest as in ``core.tool_control.Call``
    and ``Worth``."""

    leaf: str
    folders: dict[str, str]
    backend: str
    program: str
    key: str
    stated_bytes: int = 0
    limit_bytes: int | None = None
    intent: int = 100
    weight: float | None = None
    priority: int | None = None
    again: bool = False


class Ended(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """It is over. ``asks``: the controller answers with what it did to it."""

    leaf: str
    peak_bytes: int = 0
    by_itself: bool = False
    asks: bool = False


class Valued(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What a program is worth now: see ``core.tool_control.Worth``."""

    program: str
    weight: float | None = None
    priority: int | None = None
    kv_tokens: int | None = None


class Touched(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The controller holds this call back, or is about to end it."""

    leaf: str


class Done(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What was done to a call. ``why``: it was ended, and a value of ``core.tool_control.Why``."""

    leaf: str
    waited_s: float = 0.0
    why: str = ""
    memory_bytes: int = 0
    host_bytes: int = 0


ToController = Began | Ended | Valued
ToRuntime = Touched | Done

_encoder = msgspec.json.Encoder()
to_controller = msgspec.json.Decoder(ToController)
to_runtime = msgspec.json.Decoder(ToRuntime)


def encode(message: ToController | ToRuntime) -> bytes:
    """One packet."""
    return _encoder.encode(message)


def address(name: str = "") -> str:
    """Of this user's controller."""
    name = name or os.environ.get(NAME_VARIABLE, "")
    return f"\0agentsched-control-{PROTOCOL}-{os.geteuid()}" + (f"-{name}" if name else "")


def is_ours(connection: socket.socket) -> bool:
    """Whether the other end belongs to the same user."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.geteuid())


def new_socket() -> socket.socket:
    """Not yet connected or bound."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
