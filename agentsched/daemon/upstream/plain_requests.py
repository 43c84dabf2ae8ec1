"""Recognises the requests that clients make all day: a call, in plain HTTP/1.1, with the length of its body.

Nothing is judged here. A head that is anything else, be it rare or wrong, is for the full server
(``fast_path.py``), which knows all of HTTP and says what is the matter.
"""

from __future__ import annotations

import re

from agentsched.daemon.upstream.client import Head
from agentsched.engines.upstream.paths import PATHS
from agentsched.engines.upstream.wire import Header

START = b"POST /"
MOST_HEAD_BYTES = 8_190
"""So much of a head the full server takes in any case: it is its limit for one line."""
MOST_HEADERS = 100
MOST_KNOWN = 1024
MOST_KNOWN_BYTES = 2048
"""Longer heads are read each time."""

_APIS = "|".join(re.escape(path) for path in PATHS)
_LINE = rf"POST (?:/program/([\w.~-]+))?({_APIS})(?:\?([\w.~=&-]*))? HTTP/1\.1\r\n"
_FIELDS = r"((?:[\w!#$%&'*+.^`|~-]+:[\t -~]*\r\n)+)\r\n"
_head = re.compile((_LINE + _FIELDS).encode()).fullmatch
_length = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?(\d{1,15})(?=\r\n)").search
_NOT_PLAIN = frozenset(["transfer-encoding", "content-encoding", "expect", "upgrade", "te", "trailer"])
_KEPT_ALIVE = frozenset({"", "keep-alive"})


class Heads:
    """Reads heads. Those of one client differ by the length of its body alone, so what else they say is
    remembered, of as many as there may be clients at a time."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def __len__(self) -> int:
        return len(self._known)

    def read(self, data: bytes) -> tuple[Head, int] | None:
        """A whole head, with the empty line at its end, and the length of the body; None if it is not
        plain."""
        length = _length(data)
        if length is None or len(data) > MOST_KNOWN_BYTES:
            return read_head(data)
        rest = data[: length.start()] + data[length.end() :]
        known = self._known.get(rest)
        if known is not None:
            return known, int(length.group(1))
        read = read_head(data)
        if read is not None:
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[rest] = read[0]
        return read


def begins_plainly(data: bytes) -> bool:
    """Whether what has come of a head can become a plain one."""
    return data.startswith(START) if len(data) >= len(START) else START.startswith(data)


def read_head(data: bytes) -> tuple[Head, int] | None:
    """As ``Heads.read``, of a head that nothing is known of. Each of its headers came once."""
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
    head = Head(
        path.decode(),
        "" if query is None else query.decode(),
        None if program is None else program.decode(),
        headers,
        named,
    )
    return head, int(length)
