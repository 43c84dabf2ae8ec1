"""Calls that wait for their program's turn, clients that go away, and retries that come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from openai import APIStatusError, APITimeoutError

from tests.daemon.serving import DEADLINE_S, SLOW, Served, chat, served, until

# Two programs of this size exceed the engine: the second one waits for the first one's end.
KV = 2048
BIG = "x" * 1500
LONG = [{"role": "system", "content": BIG}]


@asynccontextmanager
async def streaming(served_: Served, content: str, program: str, **fields: Any) -> AsyncIterator[Any]:
    """An open stream of a program's call."""
    headers = {"x-agentsched-program": program} | fields.pop("extra_headers", {})
    body = chat(content, stream=True, **fields)
    async with served_.http.post(
        served_.url + "/v1/chat/completions",
        json=body,
        headers=headers,
        timeout=aiohttp.ClientTimeout(DEADLINE_S),
    ) as answer:
        yield answer


@asynccontextmanager
async def busy(**settings: Any) -> AsyncIterator[Served]:
    """A daemon whose engine is full with the program ``first``, which streams."""
    async with (
        served(SLOW, KV, **settings) as served_,
        streaming(served_, BIG, "first", max_tokens=400) as first,
    ):
        await data_line(first)
        yield served_


async def data_line(answer: Any) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        while not (line := await answer.content.readline()).startswith(b"data:"):
            assert line, "the stream ended"
    return bytes(line)


def text_of(stream: str) -> str:
    """The answer's text in what came over a stream."""
    data = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    choices = [choice for chunk in data for choice in json.loads(chunk)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def close(served_: Served, program: str) -> None:
    _, body, _ = await served_.post(
        "/agentsched/v1/events", {"events": [{"event": "ProgramClosed", "program": program}]}
    )
    assert body == {"accepted": 1, "ignored": 0}


async def waiting(served_: Served, program: str) -> bool:
    found = (await served_.programs()).get(program)
    return found is not None and found["state"] == "waiting"


async def test_a_held_stream_gets_headers_and_pings_at_once_then_its_answer() -> None:
    async with (
        busy(ping_s=0.05) as served_,
        streaming(
            served_, "", "second", messages=[*LONG, {"role": "user", "content": "/say at last"}]
        ) as held,
    ):
        assert held.status == 200
        assert held.headers["content-type"] == "text/event-stream"
        for _ in range(3):
            assert await held.content.readline() == b": waiting\n"
            assert await held.content.readline() == b"\n"
        assert await waiting(served_, "second")
        await close(served_, "first")
        rest = (await held.content.read()).decode()
        assert text_of(rest) == "at last"
        assert rest.endswith("data: [DONE]\n\n")


async def test_a_held_call_waits_silently_if_it_does_not_stream() -> None:
    async with busy() as served_:
        messages = [*LONG, {"role": "user", "content": "/say yes"}]
        held = asyncio.create_task(served_.chat("", messages=messages, program="second"))
        await until(lambda: waiting(served_, "second"), "it is held")
        assert not held.done()
        await close(served_, "first")
        status, body, headers = await asyncio.wait_for(held, DEADLINE_S)
        assert (status, headers["x-agentsched-program"]) == (200, "second")
        assert body["choices"][0]["message"]["content"] == "yes"


async def test_held_too_long_is_429_or_an_error_event() -> None:
    async with busy(max_hold_s=0.3, ping_s=0.05) as served_:
        status, body, headers = await served_.chat(BIG, program="second")
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(headers["Retry-After"]) >= 1
        async with streaming(served_, BIG, "third") as held:
            assert b"rate_limit_exceeded" in await data_line(held)
            assert await held.content.read() == b"\n"
        assert (await served_.programs())["first"]["state"] == "running"


async def test_closing_a_program_ends_its_calls() -> None:
    async with busy() as served_:
        held = asyncio.create_task(served_.chat(BIG, program="second"))
        await until(lambda: waiting(served_, "second"), "it is held")
        await close(served_, "second")
        status, body, _ = await held
        assert (status, body["error"]["code"]) == (409, "program_closed")
        assert set(await served_.programs()) == {"first"}


async def test_a_client_that_hangs_up_in_mid_stream_frees_the_engine() -> None:
    async with served(SLOW, KV) as served_:
        async with streaming(served_, BIG, "first", max_tokens=400) as answer:
            await data_line(answer)
            assert served_.steps[0].has_work
        await until(lambda: not served_.steps[0].has_work, "the engine goes on computing")
        assert await served_.metric("agentsched_calls_total", outcome="aborted") == 1
        status, _, _ = await served_.chat("/say still here", program="first")
        assert status == 200


async def test_a_client_that_hangs_up_while_held_leaves_the_queue() -> None:
    async with busy() as served_:
        held = asyncio.create_task(served_.chat(BIG, program="second"))
        await until(lambda: waiting(served_, "second"), "it is held")
        held.cancel()
        await asyncio.wait([held])

        async def idle() -> bool:
            return bool((await served_.programs())["second"]["state"] == "idle")

        await until(idle, "the call is still waiting")


async def test_a_retry_attaches_and_is_charged_once_and_outlives_the_first_client() -> None:
    async with served(SLOW, KV) as served_:
        async with streaming(served_, "no meaning", "p", max_tokens=100) as first:
            await data_line(first)
            retry = asyncio.create_task(served_.chat("no meaning", program="p", max_tokens=100))

            async def attached() -> bool:
                return await served_.metric("agentsched_retries_attached_total") == 1

            await until(attached, "it attaches")
            call = first.headers["x-agentsched-call"]
        status, body, headers = await asyncio.wait_for(retry, DEADLINE_S)
        assert (status, headers["x-agentsched-call"]) == (200, call)
        assert body["usage"]["completion_tokens"] == 100
        assert await served_.metric("agentsched_calls_total", outcome="finished") == 1
        assert await served_.metric("agentsched_calls_total", outcome="aborted") == 0


async def test_attached_clients_get_the_same_answer() -> None:
    async with served(SLOW, KV) as served_:
        answers = await asyncio.gather(*(served_.chat("no meaning", program="p") for _ in range(3)))
    assert len({body["choices"][0]["message"]["content"] for _, body, _ in answers}) == 1
    assert len({headers["x-agentsched-call"] for _, _, headers in answers}) == 1


async def test_an_unnamed_client_that_times_out_and_retries_stays_one_program() -> None:
    """What the OpenAI client does by itself, without telling who it is."""
    async with busy() as served_:
        async with served_.openai(retries=2) as client:
            messages: Any = [{"role": "user", "content": BIG}]
            with pytest.raises(APITimeoutError):
                await client.with_options(timeout=0.2).chat.completions.create(
                    model="simulated", messages=messages
                )
        assert len(await served_.programs()) == 2


async def test_a_client_library_sees_429_as_such() -> None:
    async with busy(max_hold_s=0.1) as served_, served_.openai("second") as client:
        messages: Any = [{"role": "user", "content": BIG}]
        with pytest.raises(APIStatusError) as error:
            await client.chat.completions.create(model="simulated", messages=messages)
        assert error.value.status_code == 429


async def test_an_idle_program_is_closed_and_comes_back() -> None:
    async with served(idle_close_s=0.2) as served_:
        await served_.chat("/say a", program="p")

        async def gone() -> bool:
            return not await served_.programs()

        await until(gone, "it stays open")
        assert (await served_.chat("/say b", program="p"))[0] == 200


async def test_a_silent_program_is_closed_once_gaps_make_its_return_improbable() -> None:
    async with served(idle_floor_s=0.1, idle_close_s=10_000.0) as served_:
        for number in range(30):
            await served_.chat(f"/say {number}", program="p")

        async def gone() -> bool:
            return not await served_.programs()

        await until(gone, "it stays open")
        _, _, headers = await served_.chat("/say again", program="p")
        assert headers["x-agentsched-program"] == "p"


async def test_a_running_tool_keeps_a_program_open() -> None:
    async with served(idle_close_s=0.2) as served_:
        tool = {"event": "ToolStarted", "tool_call": "t", "tool": "bash"}
        for program in ("idle", "busy"):
            await served_.chat("/say a", program=program)
        await served_.post("/agentsched/v1/events", {"events": [tool | {"program": "busy"}]})

        async def only_busy() -> bool:
            return set(await served_.programs()) == {"busy"}

        await until(only_busy, "the idle one is closed, and it alone")
