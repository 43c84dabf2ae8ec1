"""Any bytes on a socket: which of them are plain requests, and what all others do to the daemon."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentsched.daemon.upstream.plain_requests import MOST_KNOWN, Heads, begins_plainly, read_head
from tests.daemon.serving import DEADLINE_S
from tests.daemon.upstreams import BODY, CHAT, Double, in_front_of, plainly, request

PIECES = st.sampled_from(
    [
        b"POST ", b"GET ", CHAT.encode(), b"/program/p", b"/v1/messages", b"/health", b" HTTP/1.1", b"\r\n",
        b"\n", b"\r\n\r\n", b"Content-Length: ", b"0", b"5", b"99999999999999999999", b"-1", b"Host: a",
        b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: close", b"Upgrade: websocket",
        b":", b" ", b"\t", b"\x00", b"\xff", b"{", b"}", BODY, b"x-agentsched-program: ", b"?a=b", b"#",
    ]
)  # fmt: skip
CUTS = st.tuples(st.integers(0, 200), st.integers(0, 12), st.lists(PIECES, max_size=3))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a daemon in a thread of its own, for clients that are no coroutines."""
    loop = asyncio.new_event_loop()
    ready, done, found = threading.Event(), asyncio.Event(), []

    async def run() -> None:
        async with in_front_of(Double(plainly)) as served:
            found.append(int(served.url.rsplit(":", 1)[1]))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert ready.wait(DEADLINE_S)
    yield found[0]
    loop.call_soon_threadsafe(done.set)
    thread.join()
    loop.close()


def exchanged(port: int, parts: list[bytes]) -> bytes:
    """All that is answered to these bytes, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        received = b""
        try:
            for part in parts:
                client.sendall(part)
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                received += data
        except TimeoutError:
            raise
        except OSError:
            pass  # it has closed before it got all
    return received


def check(port: int, parts: list[bytes]) -> None:
    assert b"HTTP/1.1 500" not in exchanged(port, parts)
    good = request(BODY, "Connection: close")
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        client.sendall(good)
        received = b""
        while data := client.recv(65536):
            received += data
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")


FUZZED: dict[str, Any] = {
    "max_examples": 100,
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@given(cuts=st.lists(CUTS, min_size=1, max_size=4), split=st.integers(1, 250))
@settings(**FUZZED)
def test_a_request_that_is_damaged_harms_nobody(
    port: int, cuts: list[tuple[int, int, list[bytes]]], split: int
) -> None:
    data = request() + request()
    for at, length, pieces in cuts:
        data = data[:at] + b"".join(pieces) + data[at + length :]
    check(port, [data[:split], data[split:]])


@given(pieces=st.lists(PIECES | st.binary(max_size=20), max_size=20))
@settings(**FUZZED)
def test_whatever_bytes_come_harm_nobody(port: int, pieces: list[bytes]) -> None:
    check(port, pieces)


# Which requests are plain


@given(data=st.binary(max_size=80) | st.lists(PIECES, max_size=12).map(b"".join))
def test_a_plain_head_is_what_was_written(data: bytes) -> None:
    read = read_head(data)
    if read is not None:
        head, body_bytes = read
        assert begins_plainly(data[: len(data) // 2])
        query = f"?{head.query}" if head.query else ""
        program = "" if head.program is None else f"/program/{head.program}"
        assert data.startswith(f"POST {program}{head.path}{query}".encode())
        assert all(b"%b:" % name in data for name, _ in head.headers)
        assert body_bytes == int(head.named["content-length"])


def test_a_head_that_is_known_says_what_it_said_before() -> None:
    heads = Heads()
    first = heads.read(request(b"", "X-A: 1", length="12"))
    again = heads.read(request(b"", "X-A: 1", length="345"))
    other = heads.read(request(b"", "X-A: 2", length="12"))
    assert first is not None
    assert again is not None
    assert other is not None
    assert (first[1], again[1], other[1]) == (12, 345, 12)
    assert again[0] is first[0]
    assert (first[0].named["x-a"], other[0].named["x-a"]) == ("1", "2")
    twice = request(b"", "X-A: 1", "Content-Length: 5", length="12")
    assert heads.read(twice) is None
    assert heads.read(twice) is None


@given(data=st.binary(max_size=80) | st.lists(PIECES, max_size=12).map(b"".join), more=st.booleans())
def test_what_is_known_of_heads_changes_nothing(data: bytes, more: bool) -> None:
    heads = Heads()
    for known in (request(b"", length="7"), request(b"", "X-A: 1", length="0"), data):
        heads.read(known)
    for head in (data, data.replace(b"Content-Length: 5", b"Content-Length: 77")) if more else (data,):
        found, fresh = heads.read(head), read_head(head)
        assert (found is None) == (fresh is None)
        if found is not None and fresh is not None:
            assert found[1] == fresh[1]
            assert dict(found[0].named) | {"content-length": ""} == dict(fresh[0].named) | {
                "content-length": ""
            }


def test_no_more_heads_are_remembered_than_there_is_room_for() -> None:
    heads = Heads()
    for number in range(MOST_KNOWN + 10):
        heads.read(request(b"", f"X-A: {number}"))
    assert len(heads) == MOST_KNOWN


def test_what_is_plain() -> None:
    read = read_head(request(b"", path=f"/program/a.b-c{CHAT}?x=1", length="12"))
    assert read is not None
    head, body_bytes = read
    assert (head.program, head.path, head.query, body_bytes) == ("a.b-c", CHAT, "x=1", 12)
    assert head.named == {"host": "here", "content-type": "application/json", "content-length": "12"}
    assert head.headers[0] == (b"Host", b"here")
