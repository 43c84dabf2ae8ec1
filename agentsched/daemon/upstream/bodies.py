"""The changes that are made in bodies and headers on their way: few, and each for a stated reason.

A body that needs none goes on as it came, byte for byte. Where a field at the top is changed, all other
fields keep their bytes, and their order; the white space between fields goes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from agentsched.daemon.care import BILLING
from agentsched.engines.upstream.dialect import Added
from agentsched.engines.upstream.pool import header_lines
from agentsched.engines.upstream.wire import Header

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_NOT_PASSED_ON = _HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"accept-encoding",  # what is compressed cannot be watched
    b"content-encoding",  # the body has been decompressed
    b"expect",
}
_PLAIN: Header = (b"Accept-Encoding", b"identity")
_KEYS = frozenset({b"authorization", b"x-api-key"})
_OURS = b"x-agentsched-"

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_blocks = msgspec.json.Decoder(list[msgspec.Raw]).decode


class PassedHeaders(NamedTuple):
    """Headers of a request that the server gets, and how they are written."""

    headers: list[Header]
    lines: bytes


class Edits(msgspec.Struct, frozen=True, kw_only=True):
    """What a body needs. ``usage``: ask for it on the stream; ``options`` are the stream's options so far."""

    program_id: bool = False
    accounting: bool = False
    usage: bool = False
    options: dict[str, Any] | None = None

    def applied(self, data: bytes) -> bytes:
        """The body as it is sent."""
        if self is NO_EDITS:
            return data
        if not (self.program_id or self.accounting or self.options is not None):
            return _appended(data, b'"stream_options":{"include_usage":true}') if self.usage else data
        fields = _fields(data)
        if self.program_id:
            del fields["program_id"]
        if self.accounting:
            kept = _blocks(fields["system"])[1:]
            fields["system"] = msgspec.Raw(msgspec.json.encode(kept))
        if self.usage:
            options = (self.options or {}) | {"include_usage": True}
            fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
        return msgspec.json.encode(fields)


NO_EDITS = Edits()


def is_accounting(system: Any) -> bool:
    """Whether a system prompt begins with Claude Code's line of accounting (``care.py``)."""
    first = system[0] if isinstance(system, list) and system else None
    text = first.get("text") if isinstance(first, dict) else None
    return isinstance(text, str) and BILLING.fullmatch(text) is not None


def headers_on(headers: Sequence[Header], api_key: str | None = None, *, ours: bool = False) -> PassedHeaders:
    """Of a client's headers those that the server gets. ``api_key``: the server's, in place of the
    client's. ``ours``: the client's key is for the daemon, and goes no further."""
    passed = [_PLAIN]
    passed += [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in _NOT_PASSED_ON and not lower.startswith(_OURS)
    ]
    connection = next((value for name, value in headers if name.lower() == b"connection"), b"")
    if named := _nominated(connection):
        passed = [header for header in passed if header[0].lower() not in named]
    if ours or api_key is not None:
        passed = [header for header in passed if header[0].lower() not in _KEYS]
    if api_key is not None:
        passed.append((b"Authorization", b"Bearer " + api_key.encode()))
    return PassedHeaders(passed, header_lines(passed))


def with_added(
    headers: list[Header], body: bytes, added: Added, stated: Container[str]
) -> tuple[list[Header], bytes]:
    """The same request with what a server is to know of it; ``stated`` are fields that the body may have
    already. Fields are spliced in at the end of the body, and not a byte before them changes; only where the
    client has put one of them there itself, its value is replaced."""
    if added.headers:
        headers = [header for header in headers if header[0].lower() not in added.headers]
        headers += added.headers.items()
    if not added.fields:
        return headers, body
    if not any(name in stated for name in added.fields):
        return headers, _appended(body, msgspec.json.encode(added.fields)[1:-1])
    fields = _fields(body)
    fields |= {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in added.fields.items()}
    return headers, msgspec.json.encode(fields)


class AnswerHead(msgspec.Struct):
    """Of a server's answer: its ``headers`` are those that the client gets. ``stream``: events follow;
    ``length``: so many bytes, if it says so."""

    status: int
    headers: list[Header]
    stream: bool = False
    length: int | None = None

    @classmethod
    def of(cls, status: int, headers: Iterable[Header]) -> AnswerHead:
        head = cls(status, [])
        hop = _HOP_BY_HOP
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-length":
                if head.length is None and value.isdigit():
                    head.length = int(value)
            elif lower == b"connection":
                hop = hop | _nominated(value)
            elif lower not in hop:
                if lower == b"content-type" and value.startswith(b"text/event-stream"):
                    head.stream = True
                head.headers.append((name, value))
        if hop is not _HOP_BY_HOP:
            head.headers = [header for header in head.headers if header[0].lower() not in hop]
        return head


def _nominated(connection: bytes) -> frozenset[bytes]:
    """Headers that ``Connection`` says are for the next hop only."""
    return frozenset(part.strip() for part in connection.lower().split(b",") if part.strip())


def _appended(data: bytes, field: bytes) -> bytes:
    """A JSON object with one more field at its end."""
    inner = data.rstrip()[:-1].rstrip()
    return inner + (b"" if inner.endswith(b"{") else b",") + field + b"}"
