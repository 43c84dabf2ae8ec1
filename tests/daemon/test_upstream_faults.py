"""In front of servers that do not behave: each way has one stated answer (``daemon/upstream/calls.py``)."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from agentsched.daemon.settings import Settings
from agentsched.daemon.upstream.server import UpstreamDaemon
from agentsched.engines.contract import EngineGone
from agentsched.engines.upstream.engine import UpstreamSettings
from tests.daemon.serving import DEADLINE_S, Served, chat, until
from tests.daemon.upstreams import (
    DONE,
    Double,
    Got,
    answered,
    attached,
    delta,
    in_front_of,
    plainly,
)

CHAT = "/v1/chat/completions"


async def aborted(served: Served, calls: int = 1) -> None:
    async def done() -> bool:
        return await served.metric("agentsched_calls_total", outcome="aborted") == calls

    await until(done, "the core is told")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many Requests", "500 Oops", "503 Busy"])
async def test_an_error_of_the_server_is_the_answer(status: str, stream: bool) -> None:
    told = b'{"error": {"message": "no such model",  "type": "NotFoundError"}}'

    async def answer(got: Got) -> None:
        await got.whole(told, status, "Retry-After: 7\r\n")

    double = Double(answer)
    async with in_front_of(double) as served:
        async with served.http.post(served.url + CHAT, json=chat("hi", stream=stream)) as got:
            assert got.status == int(status[:3])
            assert got.headers["Retry-After"] == "7"
            assert await got.read() == told
        await aborted(served)
    assert len(double.requests) == 1, "it is not tried again"


async def test_a_call_that_takes_long_is_no_server_that_hangs() -> None:
    """Engines of our own are taken for hung after ``stall_s``. A server is polled, and may be busy longer."""

    async def answer(got: Got) -> None:
        await asyncio.sleep(0.3)  # several times as long
        await plainly(got)

    double = Double(answer)
    async with in_front_of(double, stall_s=0.05) as served:
        assert (await served.post(CHAT, chat("hi")))[0] == 200
    assert len(double.requests) == 1


async def garbage(got: Got) -> None:
    await got.raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def breaks_off(got: Got) -> None:
    got.cut()


async def never(got: Got) -> None:
    await got.gone.wait()


async def endless_head(got: Got) -> None:
    with suppress(ConnectionError):
        await got.raw(b"HTTP/1.1 200 OK\r\n")
        while not got.gone.is_set():
            await got.raw(b"X-A: " + b"b" * 1000 + b"\r\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (garbage, 502, "engine_malformed"),
        (endless_head, 502, "engine_malformed"),
        (never, 504, "engine_timeout"),
    ],
)
async def test_what_fails_before_its_answer_has_a_status(
    answer: Any, status: int, code: str, stream: bool
) -> None:
    double = Double(answer)
    async with in_front_of(double, silence_s=0.4) as served:
        got_status, body, headers = await served.chat("hi", stream=stream)
        assert (got_status, body["error"]["code"]) == (status, code)
        assert int(headers["Retry-After"]) >= 1
        await aborted(served)
    assert len(double.requests) == 1, "it may have been computed, so it is not sent again"


async def test_a_connection_that_breaks_off_as_it_is_used_again_is_made_anew_once() -> None:
    """So does a server that closes idle connections; a new connection that breaks off is another matter."""
    double = Double(breaks_off)
    async with in_front_of(double) as served:
        status, body, headers = await served.chat("hi")
        assert (status, body["error"]["code"]) == (502, "engine_cut_off")
        assert int(headers["Retry-After"]) >= 1
        await aborted(served, 2)  # both beginnings
    assert len(double.requests) == 2, "the first one came by the connection of the polls"


async def test_a_stream_cut_between_events_ends_with_an_error_event() -> None:
    async def answer(got: Got) -> None:
        await got.begin()
        await got.chunk(delta("he"))
        got.cut()

    async with in_front_of(Double(answer)) as served:
        body = chat("hi", stream=True, stream_options={"include_usage": True})
        async with served.http.post(served.url + CHAT, json=body) as got:
            data = await got.read()
        assert data.startswith(delta("he"))
        error = json.loads(data.removeprefix(delta("he")).removeprefix(b"data: "))
        assert error["error"]["code"] == "engine_cut_off"
        await aborted(served)


async def test_a_stream_cut_within_an_event_is_broken_off() -> None:
    async def answer(got: Got) -> None:
        await got.begin()
        await got.chunk(delta("he") + delta("llo")[:20])
        got.cut()

    async with in_front_of(Double(answer)) as served:
        body = chat("hi", stream=True, stream_options={"include_usage": True})
        async with served.http.post(served.url + CHAT, json=body) as got:
            with pytest.raises(aiohttp.ClientPayloadError):
                await got.read()
        await aborted(served)


async def test_a_whole_answer_that_is_cut_is_502_if_small_and_broken_off_if_large() -> None:
    async def answer(got: Got) -> None:
        size = 200_000 if b"large" in got.body else 200
        await got.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300000\r\n\r\n")
        await got.raw(b" " * size)
        got.writer.close()

    async with in_front_of(Double(answer)) as served:
        status, body, _ = await served.chat("small")
        assert (status, body["error"]["code"]) == (502, "engine_cut_off")
        async with served.http.post(served.url + CHAT, json=chat("large")) as got:
            assert got.headers["Content-Length"] == "300000"
            with pytest.raises(aiohttp.ClientPayloadError):
                await got.read()
        await aborted(served, 2)


async def test_an_answer_without_length_ends_with_its_connection() -> None:
    async def answer(got: Got) -> None:
        await got.raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + json.dumps(answered()).encode()
        )
        got.writer.close()

    async with in_front_of(Double(answer)) as served:
        status, body, _ = await served.chat("hi")
        assert (status, body) == (200, answered())


async def test_an_idle_connection_that_the_server_closed_is_not_noticed_by_anyone() -> None:
    async def answer(got: Got) -> None:
        await got.whole(answered())

    double = Double(answer)
    async with in_front_of(double, poll_s=60.0) as served:
        for number in range(3):
            assert (await served.chat(f"hi {number}"))[0] == 200
        assert double.connections == 1, "connections are used again"
        for task in list(double._tasks):
            task.cancel()
        assert (await served.chat("again"))[0] == 200
    assert len(double.requests) == 4


async def test_a_call_waits_for_a_server_that_is_down_and_is_answered_once_it_is_back() -> None:
    double = Double(plainly)
    async with in_front_of(double) as served:
        assert (await served.chat("hi"))[0] == 200
        await double.close()
        await attached(served, 0)
        async with served.http.get(served.url + "/ready") as ready:
            assert ready.status == 503
        asking = asyncio.create_task(served.chat("held"))

        async def waits() -> bool:
            return await served.metric("agentsched_calls_live", phase="waiting") == 1

        await until(waits, "it is held")
        await double.listen()
        status, _, _ = await asyncio.wait_for(asking, DEADLINE_S)
        assert status == 200
        await attached(served, 1)


async def test_a_call_that_finds_the_server_gone_goes_to_another_one() -> None:
    """Nobody has noticed yet that it is gone: polls are far apart."""
    one, two = Double(plainly), Double(plainly)
    async with in_front_of(one, two, policy="fcfs-lru", poll_s=60.0) as served:
        await served.chat("hi", program="p")
        here, other = (one, two) if one.requests else (two, one)
        await here.close()
        assert (await served.chat("again", program="p"))[0] == 200
        assert len(other.requests) == 1
        assert len(served.daemon.engines) == 1


async def test_without_a_server_a_call_is_503_after_the_longest_hold() -> None:
    double = Double(plainly, port=9)
    async with in_front_of(double, listening=False, max_hold_s=0.2) as served:
        status, body, headers = await served.chat("hi")
        assert (status, body["error"]["code"]) == (503, "engine_unavailable")
        assert int(headers["Retry-After"]) >= 1
        assert (await served.post("/v1/embeddings", {}))[0] == 503
        async with served.http.get(served.url + "/health") as got:
            assert got.status == 503


async def test_a_server_that_says_it_is_ill_gets_no_calls_and_finishes_what_it_has() -> None:
    going = asyncio.Event()

    async def answer(got: Got) -> None:
        await got.begin()
        await got.chunk(delta("he"))
        await going.wait()
        await got.chunk(delta("llo") + DONE)
        await got.end()

    double = Double(answer)
    async with in_front_of(double) as served:
        async with served.http.post(served.url + CHAT, json=chat("hi", stream=True)) as got:
            await got.content.readuntil(b"\n\n")
            assert double._server is not None
            double._server.close()  # as a server does that shuts down in order: it takes no more
            double.health = "503 Going"
            await attached(served, 0)
            going.set()
            assert await got.read() == delta("llo") + DONE
        await aborted(served)


async def test_an_error_after_pings_is_an_event_of_the_stream_and_breaks_another_answer_off() -> None:
    going = asyncio.Event()

    async def answer(got: Got) -> None:
        await going.wait()
        await got.whole({"error": {"message": "too long"}}, "400 Bad Request")

    async with (
        in_front_of(Double(answer), ping_s=0.05, white_space_s=0.05) as served,
        served.http.post(served.url + CHAT, json=chat("a", stream=True)) as stream,
        served.http.post(served.url + CHAT, json=chat("b")) as whole,
    ):
        assert await stream.content.readuntil(b"\n\n") == b": waiting\n\n"
        assert await whole.content.readexactly(1) == b" "
        going.set()
        last = (await stream.read()).split(b"\n\n")[-2]
        assert "too long" in json.loads(last.removeprefix(b"data: "))["error"]["message"]
        with pytest.raises(aiohttp.ClientError):
            await whole.read()


@pytest.mark.parametrize("how", ["closed", "stopped"])
async def test_a_stream_whose_program_or_daemon_ends_is_told_so(how: str) -> None:
    async def answer(got: Got) -> None:
        await got.begin()
        await got.chunk(delta("he"))
        await got.gone.wait()

    double = Double(answer)
    async with aiohttp.ClientSession() as http, in_front_of(double) as served:
        headers = {"X-Agentsched-Program": "p"}
        async with http.post(served.url + CHAT, json=chat("hi", stream=True), headers=headers) as got:
            assert await got.content.readuntil(b"\n\n") == delta("he")
            closed = {"event": "ProgramClosed", "program": "p"}
            if how == "closed":
                await served.post("/agentsched/v1/events", {"events": [closed]})
            else:
                await served.daemon.__aexit__(None, None, None)
            error = json.loads((await got.read()).removeprefix(b"data: "))["error"]
            assert error["code"] == ("program_closed" if how == "closed" else "shutting_down")
        await asyncio.wait_for(double.requests[0].gone.wait(), DEADLINE_S)


async def test_equal_calls_of_one_program_are_computed_once_until_the_answer_begins() -> None:
    going = asyncio.Event()

    async def answer(got: Got) -> None:
        await going.wait()
        await plainly(got)

    double = Double(answer)
    async with in_front_of(double) as served:
        asking = [asyncio.create_task(served.chat("hi", program="p")) for _ in range(2)]

        async def both() -> bool:
            return await served.metric("agentsched_retries_attached_total") == 1

        await until(both, "the second one is attached")
        going.set()
        assert [status for status, _, _ in await asyncio.gather(*asking)] == [200, 200]
    assert len(double.requests) == 1


async def test_an_equal_call_while_the_answer_streams_is_a_call_of_its_own() -> None:
    going = asyncio.Event()

    async def answer(got: Got) -> None:
        await got.begin()
        await got.chunk(delta("he"))
        await going.wait()
        await got.chunk(DONE)
        await got.end()

    double = Double(answer)
    headers = {"X-Agentsched-Program": "p"}
    async with in_front_of(double) as served:
        post, body = served.http.post, chat("hi", stream=True)
        async with post(served.url + CHAT, json=body, headers=headers) as one:
            await one.content.readuntil(b"\n\n")
            async with post(served.url + CHAT, json=body, headers=headers) as two:
                assert await two.content.readuntil(b"\n\n") == delta("he")
                going.set()
                assert await one.read() == await two.read() == DONE
    assert len(double.requests) == 2


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CHAT, b'{"model": "m", "messages": [', "not valid JSON"),
        (CHAT, b"[1]", "must be a JSON object"),
        (CHAT, b'{"messages": "hi"}', "messages"),
        (CHAT, b'{"messages": [1]}', "messages"),
        ("/v1/messages", b"{}", "messages"),
        ("/v1/responses", b'{"input": [1]}', "input"),
        (CHAT, b'{"program_id": "\\u0000", "messages": []}', "program_id"),
        (CHAT, b'{"messages": ' + b"[" * 100_000, "JSON"),
    ],
)
async def test_what_is_no_request_is_refused_here(path: str, body: bytes, said: str) -> None:
    double = Double(plainly)
    async with in_front_of(double) as served, served.http.post(served.url + path, data=body) as got:
        assert got.status == 400
        assert said in (await got.json())["error"]["message"]
    assert not double.requests


async def test_a_daemon_whose_server_does_not_tell_its_room_ends() -> None:
    double = Double(plainly)
    await double.listen()
    try:
        async with UpstreamDaemon([UpstreamSettings(url=double.url)], Settings(port=0)) as daemon:
            with pytest.raises(EngineGone, match="--upstream-kv-tokens"):
                await asyncio.wait_for(daemon.wait(), DEADLINE_S)
    finally:
        await double.close()
