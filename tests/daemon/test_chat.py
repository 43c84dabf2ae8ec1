"""The OpenAI API, spoken by a real client and by hand."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from agentsched.core import log as event_log
from agentsched.core.events import ProgramOpened
from tests.daemon.serving import chat, served, until

TOOLS: Any = [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}]


async def streamed(client: AsyncOpenAI, messages: Any, **fields: Any) -> tuple[str, list[Any], Any, str]:
    """Text, tool calls, usage and finish reason of a streamed answer."""
    text, reason, usage = "", "", None
    tools: list[Any] = []
    stream = await client.chat.completions.create(
        model="simulated", messages=messages, stream=True, stream_options={"include_usage": True}, **fields
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            tools += choice.delta.tool_calls or []
            reason = choice.finish_reason or reason
    return text, tools, usage, reason


@pytest.mark.parametrize("limit", [1, 40])
async def test_a_streamed_answer_is_the_whole_one_in_pieces(limit: int) -> None:
    messages: Any = [{"role": "user", "content": "/say A text of several words, and a line\nmore."}]
    async with served() as served_, served_.openai() as client:
        text, _, usage, reason = await streamed(client, messages, max_tokens=limit)
        whole = await client.chat.completions.create(model="simulated", messages=messages, max_tokens=limit)
    assert text == whole.choices[0].message.content == "A text of several words, and a line\nmore."[:limit]
    assert reason == whole.choices[0].finish_reason
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == min(limit, 40)


async def test_a_tool_call_and_its_result_stay_one_program() -> None:
    messages: Any = [{"role": "user", "content": '/call bash {"command": "ls"}'}]
    async with served() as served_, served_.openai() as client:
        first = await client.chat.completions.create(model="simulated", messages=messages, tools=TOOLS)
        assert first.choices[0].finish_reason == "tool_calls"
        asked = first.choices[0].message
        (call,) = asked.tool_calls or []
        assert (call.type, call.id[:5]) == ("function", "call_")
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("bash", {"command": "ls"})
        messages += [
            asked.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "a b"},
        ]
        text, _, usage, _ = await streamed(client, messages, tools=TOOLS)
        (program,) = (await served_.programs()).values()
    assert text == "done"
    assert program["calls_done"] == 2
    # The second prompt begins with the first one and its answer, as far as they fill whole blocks.
    assert (
        usage.prompt_tokens_details.cached_tokens
        > 0.8 * (first.usage.total_tokens if first.usage else 0) - 16
    )


async def test_a_streamed_tool_call_is_one_piece_with_its_index() -> None:
    async with served() as served_, served_.openai() as client:
        messages: Any = [{"role": "user", "content": "/call bash {}"}]
        text, (call,), _, reason = await streamed(client, messages, tools=TOOLS)
    assert (text, reason) == ("", "tool_calls")
    assert (call.index, call.function.name, call.function.arguments) == (0, "bash", "{}")


async def test_equal_first_calls_at_the_same_time_are_different_programs() -> None:
    async with served() as served_:
        answers = await asyncio.gather(*(served_.chat("/say yes") for _ in range(3)))
        assert {status for status, _, _ in answers} == {200}
        assert len({headers["x-agentsched-program"] for _, _, headers in answers}) == 3
        assert len(await served_.programs()) == 3


async def test_header_and_field_name_the_program() -> None:
    async with served() as served_:
        await served_.chat("/say a", program="by-header")
        await served_.chat("/say a", program_id="by-field")
        assert set(await served_.programs()) == {"by-header", "by-field"}


async def test_a_stop_string_ends_the_answer_and_frees_the_engine() -> None:
    async with served() as served_:
        status, answer, _ = await served_.chat("no meaning", max_tokens=4000, stop=["e", "a"])
        (choice,) = answer["choices"]
        text = choice["message"]["content"]
        assert (status, choice["finish_reason"]) == (200, "stop")
        assert not {"e", "a"} & set(text)
        assert len(text) < answer["usage"]["completion_tokens"] < 4000
        await until(lambda: not served_.steps[0].has_work, "the engine goes on")


async def test_models_and_health_and_root() -> None:
    async with served() as served_, served_.openai() as client:
        assert [model.id async for model in await client.models.list()] == ["simulated"]
        assert (await client.models.retrieve("simulated")).owned_by == "agentsched"
        for method, path in (("HEAD", "/"), ("GET", "/"), ("GET", "/health")):
            async with served_.http.request(method, served_.url + path) as answer:
                assert answer.status == 200


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
PART = "messages[0].content[0]"
GARBAGE = [
    (b'{"model": "simulated", "mess', 400, None, "invalid_json"),
    (b"\xff\xfe", 400, None, "invalid_json"),
    (b"[]", 400, None, None),
    (b"[" * 100_000, 400, None, "invalid_json"),
    (json.dumps({"model": "simulated"}).encode(), 400, "messages", None),
    (json.dumps(chat("x", messages=[{"content": "x"}])).encode(), 400, "messages[0].role", None),
    (json.dumps(chat("x", messages=[{"role": "user", "content": [IMAGE]}])).encode(), 400, PART, None),
    (json.dumps(chat("x", model=3)).encode(), 400, "model", None),
    (json.dumps(chat("x", model="gpt-5")).encode(), 404, "model", "model_not_found"),
    (json.dumps(chat("x", temperature="hot")).encode(), 400, "temperature", None),
    (json.dumps(chat("x", temperature=-1)).encode(), 400, "temperature", None),
    (json.dumps(chat("x", top_p=0)).encode(), 400, "top_p", None),
    (json.dumps(chat("x", max_tokens=0)).encode(), 400, "max_tokens", None),
    (json.dumps(chat("x", n=2)).encode(), 400, "n", None),
    (json.dumps(chat("x", seed=2**70)).encode(), 400, "seed", None),
    (json.dumps(chat("x", logprobs=True)).encode(), 400, "logprobs", None),
    (json.dumps(chat("x", top_logprobs=3)).encode(), 400, "top_logprobs", None),
    (json.dumps(chat("x", top_k="many")).encode(), 400, "top_k", None),
    (json.dumps(chat("x", top_k=-1)).encode(), 400, "top_k", None),
    (json.dumps(chat("x", presence_penalty=3)).encode(), 400, "presence_penalty", None),
    (json.dumps(chat("x", logit_bias={"a": 1})).encode(), 400, "logit_bias", None),
    (json.dumps(chat("x", logit_bias={"999": 1})).encode(), 400, "logit_bias", None),
    (json.dumps(chat("x", logit_bias={"1": 101})).encode(), 400, "logit_bias", None),
    (json.dumps(chat("x", tool_choice="required")).encode(), 400, "tool_choice", None),
    (json.dumps(chat("x", tool_choice="any", tools=TOOLS)).encode(), 400, "tool_choice", None),
    (
        json.dumps(chat("x", tool_choice={"type": "x"}, tools=TOOLS)).encode(),
        400,
        "tool_choice.function",
        None,
    ),
    (json.dumps(chat("x", functions=[{"name": "f"}])).encode(), 400, "functions", None),
    (json.dumps(chat("x", guided_json={"a": 1})).encode(), 400, "guided_json", None),
    (json.dumps(chat("x", chat_template_kwargs={"a": 1})).encode(), 400, "chat_template_kwargs", None),
    (json.dumps(chat("x", program_id="a\nb")).encode(), 400, "program_id", None),
    (json.dumps(chat("x", messages=[])).encode(), 400, "messages", None),
    (
        json.dumps(chat("x", messages=[{"role": "user", "content": 5}])).encode(),
        400,
        "messages[0].content",
        None,
    ),
    (
        json.dumps(chat("x", messages=[{"role": "sage", "content": ""}])).encode(),
        400,
        "messages[0].role",
        None,
    ),
    (json.dumps(chat("x" * 70_000)).encode(), 400, "messages", "context_length_exceeded"),
]


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: data[0][:40].decode(errors="replace"))
async def test_garbage_is_refused_naming_the_field_and_disturbs_nobody(data: Any) -> None:
    body, status, param, code = data
    async with served() as served_:
        for stream in (False, True):
            sent = body.replace(b'{"model"', b'{"stream": true, "model"', 1) if stream else body
            async with served_.http.post(served_.url + "/v1/chat/completions", data=sent) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["param"], error["code"]) == (status, param, code), error[
                    "message"
                ]
                assert set(error) == {"message", "type", "param", "code"}
        assert (await served_.chat("/say fine"))[0] == 200
        assert await served_.metric("agentsched_calls_total", outcome="finished") == 1


async def test_a_client_library_understands_the_errors() -> None:
    async with served() as served_, served_.openai() as client:
        messages: Any = [{"role": "user", "content": "x" * 70_000}]
        with pytest.raises(BadRequestError) as long:
            await client.chat.completions.create(model="simulated", messages=messages)
        assert long.value.code == "context_length_exceeded"
        assert "maximum context length is exceeded" in str(long.value)
        with pytest.raises(NotFoundError):
            await client.chat.completions.create(model="gpt-5", messages=messages)


async def test_an_answer_is_cut_to_what_fits_the_engine() -> None:
    """The limit that a client sets may be more than there is room for: that is no fault of the prompt."""
    async with served(kv_tokens=256) as served_:
        status, answer, _ = await served_.chat("no meaning", max_tokens=100_000)
        assert status == 200
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] == 256


async def test_a_body_over_the_limit_and_an_unknown_path_have_the_same_error_format() -> None:
    async with served(body_limit_bytes=10_000) as served_:
        status, body, _ = await served_.chat("x" * 20_000)
        assert (status, body["error"]["code"]) == (413, "request_too_large")
        status, body, _ = await served_.post("/v1/embeddings", {})
        assert (status, "/v1/embeddings" in body["error"]["message"]) == (404, True)
        async with served_.http.get(served_.url + "/v1/chat/completions") as answer:
            assert (answer.status, "error" in await answer.json()) == (405, True)


async def test_metrics_count_what_happened() -> None:
    async with served() as served_:
        _, answer, _ = await served_.chat("/say four")
        await served_.post("/agentsched/v1/events", {"events": []})
        usage = answer["usage"]
        assert await served_.metric("agentsched_tokens_total", kind="prompt") == usage["prompt_tokens"]
        assert await served_.metric("agentsched_tokens_total", kind="output") == 4
        assert await served_.metric("agentsched_decisions_total", kind="Admit") == 1
        assert await served_.metric("agentsched_programs", state="foreground") == 1
        assert await served_.metric("agentsched_kv_tokens", kind="capacity") == 65_536
        assert await served_.metric("agentsched_ttft_seconds_count", turn="first") == 1
        assert await served_.metric("agentsched_call_seconds_count") == 1
        assert await served_.metric("agentsched_call_seconds_bucket", le="+Inf") == 1
        assert await served_.metric("agentsched_call_seconds_bucket", le="1000.0") == 1
        assert 0 < await served_.metric("agentsched_call_seconds_sum") < 1000
        assert await served_.metric("agentsched_calls_created", outcome="finished") > 1e9


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01 not http\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxxx",
        HEAD + b"X: " + b"y" * 20_000 + b"\r\n\r\n",
    ],
    ids=lambda sent: sent[-20:].decode(errors="replace"),
)
async def test_bytes_that_are_no_http_are_answered_without_a_traceback(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as served_:
        host, port = served_.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        await writer.drain()
        assert b"400" in (await reader.readline())
        await reader.read()
        writer.close()
        await writer.wait_closed()
        assert (await served_.chat("/say fine"))[0] == 200
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING] == []


async def test_a_body_that_cannot_be_decoded_is_the_clients_fault() -> None:
    async with (
        served() as served_,
        served_.http.post(
            served_.url + "/v1/chat/completions", data=b"xxx", headers={"Content-Encoding": "gzip"}
        ) as answer,
    ):
        error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (400, "invalid_body")
    assert "gzip" in error["message"]


async def test_a_deadline_reaches_the_core_and_garbage_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    async with served(log=log) as served_:
        for garbage in ("soon", "0", "-3", "nan", "inf"):
            status, answer, _ = await served_.post(
                "/v1/chat/completions", chat("/say a"), x_agentsched_deadline_s=garbage
            )
            assert (status, answer["error"]["param"]) == (400, "x-agentsched-deadline-s")
        status, _, _ = await served_.post(
            "/v1/chat/completions", chat("/say a"), x_agentsched_deadline_s="90"
        )
        assert status == 200
    with log.open("rb") as lines:
        events = [entry.event for entry in event_log.read(lines)[1]]
    assert [event.deadline_s for event in events if isinstance(event, ProgramOpened)] == [90.0]
