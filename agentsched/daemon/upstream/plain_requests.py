"""Recognises the requests that clients make all day: a call, in plain HTTP/1.1, with the length of its body.

Nothing is judged here. A head that is anything else, be it rare or wrong, is for the full server
(``fast_path.py``), which knows all of HTTP and says what is the matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentsched.engines.upstream.paths import PATHS
from agentsched.engines.upstream.wire import Header

START = b"POST /"
MOST_HEAD_BYTES = 8_190
"""So much of a head the full server takes in any case: it is its limit for one line."""
MOST_HEADERS = 100

_APIS = "|".join(re.escape(path) for path in PATHS)
_LINE = rf"POST (?:/program/([\w.~-]+))?({_APIS})(?:\?([\w.~=&-]*))? HTTP/1\.1\r\n"
_FIELDS = r"((?:[\w!#$%&'*+.^`|~-]+:[\t -~]*\r\n)+)\r\n"
_head = re.compile((_LINE + _FIELDS).encode()).fullmatch
_NOT_PLAIN = frozenset(["transfer-encoding", "content-encoding", "expect", "upgrade", "te", "trailer"])
_KEPT_ALIVE = frozenset({"", "keep-alive"})


@dataclass(frozen=True, slots=True)
class PlainHead:
    """``path`` is that of the API. ``named``: the headers by name in lower case, each of which came once."""

    program: str | None
    path: str
    query: str
    headers: list[Header]
    named: dict[str, str]
    body_bytes: int


def begins_plainly(data: bytes) -> bool:
    """Whether what has come of a head can become a plain one."""
    return data.startswith(START) if len(data) >= len(START) else START.startswith(data)


def read_head(data: bytes) -> PlainHead | None:
    """A whole head, with the empty line at its end; None if it is not plain."""
    found = _head(data)
    if found is None:
        return None
    program, path, query, fields = found.groups()
    headers: list[Header] = []
    named: dict[str, str] = {}
    for line in fields.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        headers.append((name, value))
        named[name.decode().lower()] = value.decode()
    length = named.get("content-length", "")
    plain = (
        len(named) == len(headers) <= MOST_HEADERS
        and length.isdigit()
        and len(length) < 16
        and named.get("connection", "").lower() in _KEPT_ALIVE
        and _NOT_PLAIN.isdisjoint(named)
    )
    if not plain:
        return None
    return PlainHead(
        None if program is None else program.decode(),
        path.decode(),
        "" if query is None else query.decode(),
        headers,
        named,
        int(length),
    )
