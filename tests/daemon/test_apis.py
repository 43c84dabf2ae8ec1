"""All APIs, spoken by their own client libraries: what holds for one holds for each."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import openai
import pytest
from openai import AsyncOpenAI

from tests.daemon.serving import SLOW, served, until
from tests.daemon.speakers import SPEAKERS, Anthropic, OpenAIChat, OpenAIResponses, Speaker

each_api = pytest.mark.parametrize("speaker", SPEAKERS, ids=lambda kind: kind.__name__)
each_way = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
SAID = "A text of several words,\nand a line more."


@each_api
async def test_a_streamed_answer_is_the_whole_one(speaker: type[Speaker]) -> None:
    turns = []
    async with served() as served_:
        for stream in (False, True):
            async with speaker(served_.url) as client:
                turns.append(await client.say(f"/say {SAID}", stream=stream))
    whole, streamed = turns
    assert (whole.text, whole.reason, whole.output_tokens) == (SAID, speaker.reasons[0], len(SAID))
    # The second one found the first one's prompt in the cache.
    assert streamed.cached_tokens > whole.cached_tokens == 0
    streamed.cached_tokens = 0
    assert streamed == whole


@each_api
@each_way
async def test_an_answer_that_is_cut_says_so(speaker: type[Speaker], stream: bool) -> None:
    async with served() as served_, speaker(served_.url, limit=20) as client:
        turn = await client.say(f"/say {SAID}", stream=stream)
    assert (turn.text, turn.reason) == (SAID[:20], speaker.reasons[1])


@each_api
@each_way
async def test_a_tool_call_and_its_result_stay_one_program_and_share_the_prompt(
    speaker: type[Speaker], stream: bool
) -> None:
    async with served() as served_, speaker(served_.url) as client:
        first = await client.say('/call bash {"command": "ls -la"}', stream=stream)
        ((identifier, name, arguments),) = first.tools
        assert (name, arguments, first.reason) == ("bash", {"command": "ls -la"}, speaker.reasons[2])
        assert identifier.startswith("call_")
        second = await client.result(identifier, "a b", stream=stream)
        (program,) = (await served_.programs()).values()
    assert (second.text, second.reason, program["calls_done"]) == ("done", speaker.reasons[0], 2)
    # All of the first prompt and its answer is there, as far as it fills whole blocks.
    assert second.cached_tokens >= first.prompt_tokens + first.output_tokens - 16


@each_api
async def test_a_client_that_goes_away_ends_the_call_in_the_engine(speaker: type[Speaker]) -> None:
    async with served(SLOW) as served_, speaker(served_.url, limit=2000) as client:
        for stream in (False, True):
            asking = asyncio.create_task(client.say("no meaning", stream=stream))
            await until(lambda: served_.steps[0].has_work, "the engine computes")
            asking.cancel()
            await asyncio.wait([asking])
            await until(lambda: not served_.steps[0].has_work, "the engine goes on")
        assert await served_.metric("agentsched_calls_total", outcome="aborted") == 2


@each_api
@each_way
async def test_errors_are_those_that_the_library_knows(speaker: type[Speaker], stream: bool) -> None:
    errors = anthropic if speaker is Anthropic else openai
    async with served() as served_, speaker(served_.url, max_retries=0) as client:
        with pytest.raises(errors.BadRequestError, match=r"(?i)prompt is too long|context length"):
            await client.say("x" * 70_000, stream=stream)


async def test_a_stop_string_is_named_where_the_api_has_a_word_for_it() -> None:
    async with served() as served_, AsyncOpenAI(base_url=f"{served_.url}/v1", api_key="none") as client:
        said: Any = [{"role": "user", "content": "no meaning"}]
        chat = await client.chat.completions.create(
            model="simulated", messages=said, stop=["e", "a"], max_tokens=4000
        )
        assert chat.choices[0].finish_reason == "stop"
        assert not {"e", "a"} & set(chat.choices[0].message.content or "")
        async with Anthropic(served_.url) as speaker:
            assert isinstance(speaker, Anthropic)
            answer = await speaker.client.messages.create(
                model="simulated", messages=said, max_tokens=4000, stop_sequences=["never", "e"]
            )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "e")


@each_way
async def test_completions_go_on_from_the_text_itself(stream: bool) -> None:
    async with served() as served_, AsyncOpenAI(base_url=f"{served_.url}/v1", api_key="none") as client:
        create: Any = client.completions.create
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = await create(model="simulated", prompt="/say four", max_tokens=9, **options)
        if stream:
            chunks = [chunk async for chunk in answer]
            text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
            reason, usage = chunks[-2].choices[0].finish_reason, chunks[-1].usage
        else:
            text, reason = answer.choices[0].text, answer.choices[0].finish_reason
            usage = answer.usage
        assert (text, reason) == ("four", "stop")
        # No template around it: the prompt is its nine characters.
        assert (usage.prompt_tokens, usage.completion_tokens) == (9, 4)
        tokens = await create(model="simulated", prompt=[65, 66, 67])
        assert (tokens.usage.prompt_tokens, tokens.choices[0].finish_reason) == (3, "length")


async def test_models_in_the_form_of_either_vendor() -> None:
    async with served() as served_, OpenAIChat(served_.url) as one, Anthropic(served_.url) as other:
        assert isinstance(one, OpenAIChat)
        assert isinstance(other, Anthropic)
        assert [model.id async for model in one.client.models.list()] == ["simulated"]
        assert [model.id async for model in other.client.models.list()] == ["simulated"]
        assert (await other.client.models.retrieve("simulated")).display_name == "simulated"
        with pytest.raises(anthropic.NotFoundError):
            await other.client.models.retrieve("another")


async def test_tokens_are_counted_as_the_call_itself_counts_them() -> None:
    messages: Any = [{"role": "user", "content": "/say héllo"}]
    async with served() as served_, Anthropic(served_.url) as speaker, OpenAIResponses(served_.url) as _:
        assert isinstance(speaker, Anthropic)
        counted = await speaker.client.messages.count_tokens(model="simulated", messages=messages)
        answer = await speaker.client.messages.create(model="simulated", messages=messages, max_tokens=9)
        assert counted.input_tokens == answer.usage.input_tokens
        _, told, _ = await served_.post("/tokenize", {"messages": messages})
        assert (told["count"], told["max_model_len"]) == (counted.input_tokens, 65_536)
        assert len(told["tokens"]) == told["count"]
        _, told, _ = await served_.post("/tokenize", {"prompt": "AB"})
        assert told["tokens"] == [65, 66]


async def test_a_daemon_that_stops_lets_running_calls_end() -> None:
    async with AsyncExitStack() as clients:
        async with served(SLOW, drain_s=20) as served_:
            client = await clients.enter_async_context(OpenAIChat(served_.url, limit=30))
            asking = asyncio.create_task(client.say("no meaning", stream=True))
            await until(lambda: served_.steps[0].has_work, "the engine computes")
        turn = await asking
    assert (turn.output_tokens, turn.reason) == (30, "length")


async def test_ready_says_whether_calls_are_taken() -> None:
    async with served() as served_:
        async with served_.http.get(f"{served_.url}/ready") as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ready"})
        await served_.daemon._drain()
        async with served_.http.get(f"{served_.url}/ready") as answer:
            assert (answer.status, "shutting down" in (await answer.json())["status"]) == (503, True)
        async with served_.http.get(f"{served_.url}/health") as answer:
            assert answer.status == 200
