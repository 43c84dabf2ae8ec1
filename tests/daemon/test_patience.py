"""Calls that wait longer than clients do, by the real clients' own time-outs and retries.

All client libraries give up after 600 s without a byte, and try again twice. Here that is 1 s, and all
other times are as much shorter. Letting a client's time-out pass is the one thing that these tests sleep for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from tests.daemon.serving import DEADLINE_S, Served, served, until
from tests.daemon.speakers import SPEAKERS, Anthropic, LiteLLM, Speaker
from tests.daemon.test_waiting import BIG, busy, close

TIMEOUT_S = 1.0
each_api = pytest.mark.parametrize("speaker", SPEAKERS, ids=lambda kind: kind.__name__)
each_way = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@asynccontextmanager
async def held(
    speaker: type[Speaker], *, stream: bool, max_retries: int = 2, **settings: Any
) -> AsyncIterator[tuple[Served, asyncio.Task[Any]]]:
    """A daemon that is full, and a client's call that waits there."""
    async with served() as served_, speaker(served_.url) as client:
        # What a library imports at its first call would take longer than the time-out.
        await client.say("/say a", stream=stream)
    async with (
        busy(**({"ping_s": 0.1} | settings)) as served_,
        speaker(served_.url, timeout=TIMEOUT_S, max_retries=max_retries) as client,
    ):
        client.history.append({"role": "user", "content": BIG})
        asking = asyncio.create_task(client.say("/say at last", stream=stream))
        await until(lambda: two(served_), "it is held")
        yield served_, asking
        if not asking.done():
            asking.cancel()
            await asyncio.wait([asking])


async def two(served_: Served) -> bool:
    return await served_.metric("agentsched_calls_live", phase="waiting") == 1


@each_api
async def test_signs_of_life_keep_a_stream_open_beyond_the_clients_time_out(speaker: type[Speaker]) -> None:
    async with held(speaker, stream=True) as (served_, asking):
        await asyncio.sleep(2 * TIMEOUT_S)
        await close(served_, "first")
        assert (await asyncio.wait_for(asking, DEADLINE_S)).text == "at last"
        assert await served_.metric("agentsched_retries_attached_total") == 0
        assert await served_.metric("agentsched_calls_total", outcome="finished") == 1


@each_api
async def test_white_space_keeps_an_answer_that_is_not_streamed(speaker: type[Speaker]) -> None:
    async with held(speaker, stream=False, silence_s=0.2) as (served_, asking):
        await asyncio.sleep(2 * TIMEOUT_S)
        await close(served_, "first")
        assert (await asyncio.wait_for(asking, DEADLINE_S)).text == "at last"
        assert await served_.metric("agentsched_retries_attached_total") == 0


@each_api
async def test_a_client_that_times_out_and_tries_again_finds_its_place(speaker: type[Speaker]) -> None:
    """Without a word about who it is: its second try is the call that waits already, charged once."""
    async with held(speaker, stream=False, max_retries=4, retry_grace_s=10) as (served_, asking):

        async def attached() -> bool:
            return await served_.metric("agentsched_retries_attached_total") >= 1

        await until(attached, "no retry attaches")
        assert await served_.metric("agentsched_calls_total", outcome="aborted") == 0
        await close(served_, "first")
        assert (await asyncio.wait_for(asking, DEADLINE_S)).text == "at last"
        assert await served_.metric("agentsched_calls_total", outcome="finished") == 1
        (program,) = (await served_.programs()).values()
        assert program["calls_done"] == 1


@each_api
@each_way
async def test_the_longest_hold_ends_in_what_the_library_calls_a_rate_limit(
    speaker: type[Speaker], stream: bool
) -> None:
    async with held(speaker, stream=stream, max_retries=0, max_hold_s=0.3) as (served_, asking):
        kind = anthropic.APIStatusError if speaker is Anthropic else openai.APIError
        with pytest.raises(kind, match=r"held for 0\.3 s") as error:
            await asyncio.wait_for(asking, DEADLINE_S)
        if not stream:
            assert isinstance(error.value, anthropic.RateLimitError | openai.RateLimitError)
            if speaker is not LiteLLM:  # which makes its own error of it, without the headers
                assert int(error.value.response.headers["retry-after"]) >= 1
        assert (await served_.programs())["first"]["state"] == "running"


async def test_an_answer_that_has_begun_and_fails_is_broken_off_not_taken_for_one() -> None:
    speaker = SPEAKERS[0]
    assert isinstance(speaker, type)
    async with held(speaker, stream=False, max_retries=0, silence_s=0.1, max_hold_s=0.4) as (_, asking):
        with pytest.raises(openai.APIConnectionError):
            await asyncio.wait_for(asking, DEADLINE_S)


async def test_a_held_call_that_nobody_comes_back_for_leaves_the_line() -> None:
    speaker = SPEAKERS[0]
    assert isinstance(speaker, type)
    async with held(speaker, stream=False, retry_grace_s=0.2) as (served_, asking):
        asking.cancel()
        await asyncio.wait([asking])

        async def gone() -> bool:
            return not await two(served_)

        await until(gone, "it still waits")
        assert await served_.metric("agentsched_calls_total", outcome="aborted") == 1
