"""In front of servers that behave: what they are sent, what clients get, and what the core learns of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.daemon.serving import DEADLINE_S, chat, until
from tests.daemon.upstreams import (
    DONE,
    USAGE,
    Double,
    Got,
    answered,
    counted,
    delta,
    finished,
    in_front_of,
    plainly,
)


async def test_a_body_that_needs_no_change_arrives_byte_by_byte() -> None:
    double = Double(plainly)
    odd = b'{ "model":"m", "messages" : [{"role":"user","content":"h\\u00e9 \xc3\xa9"}],\n "x": 1.0, "n":2 }'
    async with (
        in_front_of(double) as served,
        served.http.post(
            served.url + "/v1/chat/completions?a=%20b",
            data=odd,
            headers={"Authorization": "Bearer sk-client", "X-Agentsched-Program": "p", "X-Other": "1"},
        ) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["x-agentsched-program"] == "p"
        got = double.requests[0]
        assert await answer.read() == json.dumps(answered()).encode()
    assert got.body == odd
    assert got.line == "POST /v1/chat/completions?a=%20b HTTP/1.1"
    assert got.headers["authorization"] == "Bearer sk-client"
    assert got.headers["x-other"] == "1"
    assert got.headers["accept-encoding"] == "identity"
    assert "x-agentsched-program" not in got.headers


async def test_the_servers_key_takes_the_place_of_the_clients() -> None:
    double = Double(plainly)
    async with in_front_of(double, api_key="sk-server") as served:
        status, _, _ = await served.post("/v1/chat/completions", chat("hi"), x_api_key="sk-client")
        assert status == 200
    assert double.requests[0].headers["authorization"] == "Bearer sk-server"
    assert "x-api-key" not in double.requests[0].headers


async def test_our_field_is_taken_out_and_all_others_keep_their_bytes() -> None:
    double = Double(plainly)
    kept = b'"messages":[{"role":"user",  "content":"\\u00e9"}],"temperature":1.0}'
    async with (
        in_front_of(double) as served,
        served.http.post(
            served.url + "/v1/chat/completions", data=b'{"model":"m", "program_id":"p",' + kept
        ) as answer,
    ):
        assert answer.headers["x-agentsched-program"] == "p"
    assert double.requests[0].body == b'{"model":"m",' + kept


@pytest.mark.parametrize("asks", [True, False])
async def test_a_stream_comes_back_byte_by_byte(asks: bool) -> None:
    """With and without its usage being asked for; the chunk that was asked for in the client's place is
    gone."""

    async def answer(got: Got) -> None:
        await got.begin("X-Up: 1\r\n")
        for data in (
            b": odd comment\n\n",
            delta("he"),
            b'data:{"choices":[{"delta":{"content":"llo"}}]}\r\n\r\n',
        ):
            await got.chunk(data)
        await got.chunk(counted() + DONE)
        await got.end()

    double = Double(answer)
    body = chat("hi", stream=True) | ({"stream_options": {"include_usage": True}} if asks else {})
    async with in_front_of(double) as served:
        async with served.http.post(served.url + "/v1/chat/completions", json=body) as got:
            assert got.headers["X-Up"] == "1"
            assert got.headers["Content-Type"] == "text/event-stream"
            data = await got.read()
        head = b": odd comment\n\n" + delta("he") + b'data:{"choices":[{"delta":{"content":"llo"}}]}\r\n\r\n'
        assert data == head + (counted() if asks else b"") + DONE
        await finished(served, 1)
        assert await served.metric("agentsched_tokens_total", kind="cached") == 100
        assert await served.metric("agentsched_ttft_seconds_count", turn="first") == 1
    sent = json.loads(double.requests[0].body)
    assert sent["stream_options"] == {"include_usage": True}


async def test_chunks_leave_as_they_come() -> None:
    going = asyncio.Event()

    async def answer(got: Got) -> None:
        await got.begin()
        await got.chunk(delta("he"))
        await going.wait()
        await got.chunk(delta("llo") + DONE)
        await got.end()

    async with in_front_of(Double(answer)) as served:
        body = chat("hi", stream=True)
        async with served.http.post(served.url + "/v1/chat/completions", json=body) as got:
            first = await asyncio.wait_for(got.content.readuntil(b"\n\n"), DEADLINE_S)
            assert first == delta("he")
            going.set()
            assert await got.read() == delta("llo") + DONE


async def test_an_event_in_pieces_is_put_together_only_where_usage_is_hidden() -> None:
    whole = delta("he") + counted() + delta("llo") + DONE

    async def answer(got: Got) -> None:
        await got.begin()
        for at in range(0, len(whole), 7):
            await got.chunk(whole[at : at + 7])
        await got.end()

    async with (
        in_front_of(Double(answer)) as served,
        served.http.post(served.url + "/v1/chat/completions", json=chat("hi", stream=True)) as got,
    ):
        assert await got.read() == delta("he") + delta("llo") + DONE


async def test_a_conversation_is_one_program_and_its_tokens_are_those_of_the_server() -> None:
    async def answer(got: Got) -> None:
        call = {
            "id": "call_0123456789abcdef",
            "type": "function",
            "function": {"name": "bash", "arguments": "{}"},
        }
        await got.whole(answered("", tool_calls=[call]))

    async with in_front_of(Double(answer)) as served:
        tools = [{"type": "function", "function": {"name": "bash"}}]
        _, first, headers = await served.chat("task", tools=tools)
        program = headers["x-agentsched-program"]
        asked = first["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": asked["tool_calls"][0]["id"], "content": "ok"}
        messages = [{"role": "user", "content": "task"}, asked, result]
        _, _, headers = await served.post(
            "/v1/chat/completions", {"model": "m", "messages": messages, "tools": tools}
        )
        assert headers["x-agentsched-program"] == program
        view = (await served.programs())[program]
        assert view["context_tokens"] == USAGE["prompt_tokens"] + USAGE["completion_tokens"]
        assert await served.metric("agentsched_calls_identified_total", signal="tool call") == 1


async def test_ids_that_servers_number_tell_nothing() -> None:
    async def answer(got: Got) -> None:
        call = {"id": "functions.bash:0", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
        await got.whole(answered("", tool_calls=[call]))

    async with in_front_of(Double(answer)) as served:
        programs = set()
        for task in ("one", "two"):
            _, first, _ = await served.chat(task)
            asked = first["choices"][0]["message"]
            result = {"role": "tool", "tool_call_id": "functions.bash:0", "content": "ok"}
            messages = [{"role": "user", "content": task}, asked, result]
            _, _, headers = await served.post("/v1/chat/completions", {"model": "m", "messages": messages})
            programs.add(headers["x-agentsched-program"])
        assert len(programs) == 2
        assert len(await served.programs()) == 2, "each conversation is known by its prefix"


async def test_a_client_that_leaves_closes_the_servers_connection() -> None:
    async def answer(got: Got) -> None:
        await got.begin()
        await got.chunk(delta("he"))
        await got.gone.wait()

    double = Double(answer)
    async with in_front_of(double) as served:
        body = chat("hi", stream=True)
        async with served.http.post(served.url + "/v1/chat/completions", json=body) as got:
            await got.content.readuntil(b"\n\n")
        await asyncio.wait_for(double.requests[0].gone.wait(), DEADLINE_S)

        async def aborted() -> bool:
            return await served.metric("agentsched_calls_total", outcome="aborted") == 1

        await until(aborted, "the core is told")


async def test_a_slow_client_holds_the_server_back_and_gets_everything() -> None:
    sent = 0

    async def answer(got: Got) -> None:
        nonlocal sent
        await got.begin()
        for _ in range(400):
            await got.chunk(delta("x" * 65_536))
            sent += 1
        await got.chunk(DONE)
        await got.end()

    double = Double(answer)
    async with in_front_of(double) as served:
        host, port = served.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
        body = json.dumps(chat("hi", stream=True)).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await reader.readuntil(b"\r\n\r\n")
        last = -1
        while sent != last:  # until all buffers on the way are full
            last = sent
            await asyncio.sleep(0.3)
        assert sent < 400
        got, tail = 0, b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            data = await reader.read(1 << 20)
            got, tail = got + len(data), (tail + data)[-7:]
        assert got > 400 * 65_536
        writer.close()
        await writer.wait_closed()


async def test_what_is_no_call_is_passed_by_unscheduled() -> None:
    async def answer(got: Got) -> None:
        await got.whole({"seen": got.line, "body": got.body.decode()})

    double = Double(answer, others={"/v1/models": {"object": "list", "data": [{"id": "m"}]}})
    async with in_front_of(double) as served:
        async with served.http.get(served.url + "/v1/models") as got:
            assert (await got.json())["data"] == [{"id": "m"}]
        _, told, _ = await served.post("/v1/embeddings?x=1", {"input": "a"})
        assert told["seen"] == "POST /v1/embeddings?x=1 HTTP/1.1"
        _, told, _ = await served.post("/program/p/v1/rerank", {})
        assert told["seen"] == "POST /v1/rerank HTTP/1.1"
        _, told, _ = await served.post("/tokenize", {"prompt": "a"})
        assert told["seen"] == "POST /tokenize HTTP/1.1"
        _, told, _ = await served.post("/v1/messages/count_tokens", {})
        assert told["seen"] == "POST /v1/messages/count_tokens HTTP/1.1"
        assert await served.programs() == {}


async def test_two_servers_share_programs_and_each_stays_where_it_began() -> None:
    one, two = Double(plainly), Double(plainly)
    async with in_front_of(one, two, policy="fcfs-lru") as served:
        for program in ("a", "b", "a", "b"):
            await served.chat("hi", program=program)
    assert len(one.requests) == len(two.requests) == 2


async def test_a_call_is_held_until_its_turn_and_the_client_hears_of_it() -> None:
    """The engine has room for one program; a stream that waits has its headers and pings."""
    going = asyncio.Event()

    async def answer(got: Got) -> None:
        if b"first" in got.body:
            await going.wait()
        await plainly(got)

    double = Double(answer)
    async with in_front_of(double, kv_tokens=1000, ping_s=0.05) as served:
        big = "first " + "x" * 2600
        first = asyncio.create_task(served.chat(big, program="a"))

        async def running() -> bool:
            return len(double.requests) == 1

        await until(running, "the first call runs")
        body = chat("second " + "x" * 2600, stream=True)
        async with served.http.post(
            served.url + "/v1/chat/completions", json=body, headers={"X-Agentsched-Program": "b"}
        ) as got:
            assert await got.content.readuntil(b"\n\n") == b": waiting\n\n"
            assert len(double.requests) == 1
            await served.post("/agentsched/v1/events", {"events": []})
            going.set()
            with_pings = await got.read()
        assert with_pings.replace(b": waiting\n\n", b"") == delta("he") + delta("llo") + DONE
        assert (await first)[0] == 200


@pytest.mark.parametrize(
    ("others", "tokens"),
    [
        ({"/get_server_info": {"max_total_num_tokens": 4321, "page_size": 16}}, 4321),
        ({"/metrics": b'vllm:cache_config_info{block_size="16",num_gpu_blocks="300",x="y"} 1.0\n'}, 4800),
    ],
)
async def test_the_server_tells_its_room(others: dict[str, Any], tokens: int) -> None:
    async with in_front_of(Double(plainly, others=others), kv_tokens=None) as served:
        engine = next(iter(served.daemon.engines.values()))
        assert engine.capabilities.capacity_tokens == tokens
