"""What arrives on a socket, byte by byte: plain calls are served at once, all else by the full server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from agentsched.daemon.upstream import fast_path
from tests.daemon.serving import DEADLINE_S, Served, until
from tests.daemon.upstreams import BODY, CHAT, Double, Got, answered, in_front_of, plainly, request


class Wire:
    """A client that writes bytes and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, served: Served) -> Wire:
        port = int(served.url.rsplit(":", 1)[1])
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next one."""
        async with asyncio.timeout(DEADLINE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            lower = head.lower()
            if b"transfer-encoding: chunked" in lower:
                return status, head, await self._chunks()
            at = lower.find(b"content-length:")
            length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            return status, head, await self.reader.readexactly(length)

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append(await self.reader.readexactly(size))
            await self.reader.readline()
        await self.reader.readline()
        return b"".join(parts)

    async def closed(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            assert await self.reader.read() == b""


Connect = Callable[[Served], Awaitable[Wire]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients, which are gone after the test."""
    made: list[Wire] = []

    async def make(served: Served) -> Wire:
        made.append(await Wire.to(served))
        return made[-1]

    yield make
    for wire in made:
        wire.writer.close()
        with suppress(ConnectionError):
            await wire.writer.wait_closed()


def by_the_full_server(head: bytes) -> bool:
    return b"\r\nServer: " in head


async def test_a_plain_call_takes_the_fast_path(connect: Connect) -> None:
    async with in_front_of(Double(plainly)) as served:
        wire = await connect(served)
        for _ in range(2):
            wire.send(request())
            status, head, body = await wire.answer()
            assert (status, json.loads(body)) == (200, answered())
            assert b"\r\nDate: " in head
            assert not by_the_full_server(head)
        wire.send(request(BODY[:-1] + b', "stream": true}'))
        status, head, body = await wire.answer()
        assert (status, body.endswith(b"data: [DONE]\n\n")) == (200, True)
        assert not by_the_full_server(head)


async def test_a_call_may_come_in_any_pieces(connect: Connect) -> None:
    async with in_front_of(Double(plainly)) as served:
        wire = await connect(served)
        data = request()
        for at in range(len(data)):
            wire.send(data[at : at + 1])
            await wire.writer.drain()
            await asyncio.sleep(0)
        status, head, _ = await wire.answer()
        assert (status, by_the_full_server(head)) == (200, False)


async def test_pipelined_calls_are_answered_in_order(connect: Connect) -> None:
    async def echo(got: Got) -> None:
        await got.whole(got.body)

    async with in_front_of(Double(echo)) as served:
        wire = await connect(served)
        bodies = [BODY.replace(b"hi", b"%d" % number) for number in range(5)]
        wire.send(b"".join(map(request, bodies)))
        for body in bodies:
            status, _, answer = await wire.answer()
            assert (status, answer) == (200, body)


async def test_many_refusals_in_a_row_are_all_told(connect: Connect) -> None:
    async with in_front_of(Double(plainly)) as served:
        wire = await connect(served)
        wire.send(request(b"{") * 400 + request())
        statuses = [(await wire.answer())[0] for _ in range(401)]
        assert statuses == [400] * 400 + [200]


async def test_who_reads_no_answers_gets_no_more_calls_through(connect: Connect) -> None:
    large = json.dumps(answered("x" * 50_000)).encode()
    double = Double(lambda got: got.whole(large))
    async with in_front_of(double) as served:
        wire = await connect(served)
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(request() * 120)  # whose answers are more than the system keeps for a client
        other = await connect(served)
        for _ in range(130):  # meanwhile it would have had its turn as often
            other.send(request(BODY, "x-agentsched-program: other"))
            assert (await other.answer())[0] == 200
        assert len(double.requests) < 120 + 130
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(120):
            status, _, body = await wire.answer()
            assert (status, body) == (200, large)


async def test_more_than_there_is_room_for_waits_its_turn(connect: Connect) -> None:
    async def echo(got: Got) -> None:
        await got.whole(got.body)

    async with in_front_of(Double(echo), kv_tokens=10**9) as served:
        wire = await connect(served)
        bodies = [BODY.replace(b"hi", b"%d" % number * 100_000) for number in range(9)]
        wire.send(b"".join(map(request, bodies)))
        for body in bodies:
            status, _, answer = await wire.answer()
            assert (status, answer) == (200, body)


async def test_a_connection_may_carry_calls_and_all_else(connect: Connect) -> None:
    async with in_front_of(Double(plainly)) as served:
        wire = await connect(served)
        wire.send(request() + b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n" + request())
        seen = [await wire.answer() for _ in range(3)]
        assert [status for status, _, _ in seen] == [200, 200, 200]
        assert [by_the_full_server(head) for _, head, _ in seen] == [False, True, True]


ODD: dict[str, tuple[bytes, int]] = {
    "chunked": (
        request(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), "Transfer-Encoding: chunked", length="none"),
        200,
    ),
    "HTTP/1.0": (request(line="POST {} HTTP/1.0"), 200),
    "a header twice": (request(BODY, "X-A: 1", "X-A: 2"), 200),
    "close": (request(BODY, "Connection: close"), 200),
    "another letter case": (request(BODY, "content-TYPE2: a"), 200),
    "escapes in the path": (request(path="/program/a%20b" + CHAT), 200),
    "truncated JSON": (request(BODY[:-3]), 400),
    "no JSON": (request(b"\xff\x00"), 400),
    "a list": (request(b"[]"), 400),
    "wrong types": (request(b'{"messages": 3}'), 400),
    "no body": (request(b""), 400),
    "no length": (request(b"", length="none"), 400),
    "two lengths": (request(BODY, "Content-Length: 3"), 400),
    "a length and chunks": (request(BODY, "Transfer-Encoding: chunked"), 400),
    "a negative length": (request(length="-1"), 400),
    "an absurd length": (request(length="9" * 30), 400),
    "too large a body": (request(length=str(10**9)), 413),
    "10,000 headers": (request(BODY, *(f"X-{number}: a" for number in range(10_000))), 400),
    "a long header": (request(BODY, "X-A: " + "a" * 100_000), 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 64, 400),
    "a bad header": (request(BODY, "X A: 1"), 400),
    "a name that is no id": (request(BODY, "x-agentsched-program: //a"), 400),
    "a bad deadline": (request(BODY, "x-agentsched-deadline-s: soon"), 400),
    "another path": (request(path="/v2/nothing"), 404),
    "another method": (b"PUT /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 200),
}


@pytest.mark.parametrize("odd", ODD)
async def test_what_is_not_plain_is_served_all_the_same_or_refused(odd: str, connect: Connect) -> None:
    data, wanted = ODD[odd]
    async with in_front_of(Double(plainly if odd != "another method" else _empty)) as served:
        wire = await connect(served)
        wire.send(data)
        status, _, body = await wire.answer()
        assert status == wanted, body
        if status != 200 and b"{" in body:
            assert json.loads(body)["error"]["message"]
        again = await connect(served)
        again.send(request())
        assert (await again.answer())[0] == 200


async def _empty(got: Got) -> None:
    await got.whole({})


@pytest.mark.parametrize(("path", "kind"), [(CHAT, None), ("/v1/messages", "error")])
async def test_errors_have_the_form_of_the_api(path: str, kind: str | None, connect: Connect) -> None:
    async with in_front_of(Double(plainly)) as served:
        wire = await connect(served)
        wire.send(request(b"{", path=path))
        status, head, body = await wire.answer()
        assert (status, json.loads(body).get("type")) == (400, kind)
        assert not by_the_full_server(head)


async def test_who_expects_to_be_asked_for_the_body_is_asked(connect: Connect) -> None:
    async with in_front_of(Double(plainly)) as served:
        wire = await connect(served)
        wire.send(request(b"", "Expect: 100-continue", length=str(len(BODY))))
        assert (await wire.answer())[0] == 100
        wire.send(BODY)
        assert (await wire.answer())[0] == 200


@pytest.mark.parametrize("data", [request()[:40], request()[:-5]], ids=["head", "body"])
async def test_a_client_that_is_too_slow_is_told_and_closed(
    data: bytes, monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    for name in ("HEAD_S", "BODY_S", "WATCH_S"):
        monkeypatch.setattr(fast_path, name, 0.02)
    async with in_front_of(Double(plainly)) as served:
        wire = await connect(served)
        wire.send(data)
        status, _, body = await wire.answer()
        assert status == 408
        assert "too long" in json.loads(body)["error"]["message"]
        await wire.closed()


@pytest.mark.parametrize("data", [b"", request()[:40], request()[:-5]], ids=["nothing", "head", "body"])
async def test_a_client_that_ends_in_the_middle_is_closed(data: bytes, connect: Connect) -> None:
    async with in_front_of(Double(plainly)) as served:
        wire = await connect(served)
        wire.send(data)
        wire.writer.write_eof()
        await wire.closed()


async def test_a_client_that_goes_away_ends_its_call_in_the_engine(connect: Connect) -> None:
    async def never(got: Got) -> None:
        await got.gone.wait()

    double = Double(never)
    async with in_front_of(double) as served:
        wire = await connect(served)
        wire.send(request())
        await until(lambda: len(double.requests) == 1, "the engine has the call")
        wire.writer.transport.abort()
        async with asyncio.timeout(DEADLINE_S):
            await double.requests[0].gone.wait()


async def test_the_daemon_ends_with_answers_under_way(connect: Connect) -> None:
    going_on = asyncio.Event()

    async def slowly(got: Got) -> None:
        await going_on.wait()
        await got.whole(answered())

    double = Double(slowly)
    async with in_front_of(double, drain_s=DEADLINE_S) as served:
        idle, busy = await connect(served), await connect(served)
        busy.send(request())
        await until(lambda: len(double.requests) == 1, "the engine has the call")
        closing = asyncio.create_task(served.daemon.__aexit__(None, None, None))
        await until(lambda: served.daemon._calls.unavailable is not None, "it takes no more calls")
        idle.send(request())
        assert (await idle.answer())[0] == 503
        going_on.set()
        assert (await busy.answer())[0] == 200
        await asyncio.gather(closing, idle.closed(), busy.closed())
