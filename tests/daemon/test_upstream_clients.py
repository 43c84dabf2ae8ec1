"""Real clients, and each API, through the daemon in front of a server."""

from __future__ import annotations

import json
from typing import Any

from anthropic import AsyncAnthropic

from tests.daemon.upstreams import Double, Got, event, finished, in_front_of, plainly


async def test_the_openai_client_through_it() -> None:
    async with in_front_of(Double(plainly)) as served:
        client = served.openai()
        whole = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert whole.choices[0].message.content == "hello"
        assert whole.usage is not None
        assert whole.usage.prompt_tokens_details is not None
        assert whole.usage.prompt_tokens_details.cached_tokens == 100
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        texts = [chunk.choices[0].delta.content async for chunk in stream]
        assert texts == ["he", "llo"]
        await client.close()


def _named(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + event({"type": kind} | fields)


async def test_the_anthropic_client_through_it() -> None:
    usage = {"input_tokens": 20, "cache_read_input_tokens": 100, "output_tokens": 1}
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}
    message |= {"content": [], "stop_reason": None, "usage": usage}
    sent = b"".join(
        [
            _named("message_start", message=message),
            _named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            _named("content_block_delta", index=0, delta={"type": "text_delta", "text": "hello"}),
            _named("content_block_stop", index=0),
            _named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}),
            _named("message_stop"),
        ]
    )

    async def answer(got: Got) -> None:
        await got.begin()
        await got.chunk(sent)
        await got.end()

    double = Double(answer)
    async with in_front_of(double) as served:
        client = AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0)
        billing = {
            "type": "text",
            "text": "x-anthropic-billing-header: cc_version=2.1.197.abc; cc_entrypoint=cli;",
        }
        async with client.messages.stream(
            model="m",
            max_tokens=10,
            system=[billing, {"type": "text", "text": "You are an agent."}],  # type: ignore[list-item]
            messages=[{"role": "user", "content": "hi"}],
        ) as stream:
            assert await stream.get_final_text() == "hello"
        await client.close()
        await finished(served, 1)
        assert await served.metric("agentsched_tokens_total", kind="prompt") == 120
        assert await served.metric("agentsched_tokens_total", kind="cached") == 100
        assert await served.metric("agentsched_tokens_total", kind="output") == 7
    system = json.loads(double.requests[0].body)["system"]
    assert system == [{"type": "text", "text": "You are an agent."}], "prefix care holds here, too"


async def test_the_responses_api_through_it() -> None:
    response = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": []}
    item = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_abcdefghij",
        "name": "bash",
        "arguments": "{}",
    }
    usage = {
        "input_tokens": 50,
        "input_tokens_details": {"cached_tokens": 32},
        "output_tokens": 3,
        "total_tokens": 53,
    }

    async def answer(got: Got) -> None:
        await got.begin()
        await got.chunk(_named("response.created", response=response))
        await got.chunk(_named("response.output_text.delta", delta="hel", item_id="m", output_index=0))
        await got.chunk(_named("response.output_item.done", output_index=1, item=item))
        await got.chunk(_named("response.completed", response=response | {"usage": usage}))
        await got.end()

    async with in_front_of(Double(answer)) as served:
        body = {"model": "m", "input": "hi", "stream": True}
        async with served.http.post(served.url + "/v1/responses", json=body) as got:
            program = got.headers["x-agentsched-program"]
            await got.read()
        await finished(served, 1)
        assert await served.metric("agentsched_tokens_total", kind="cached") == 32
        result = {"type": "function_call_output", "call_id": "call_abcdefghij", "output": "ok"}
        again = {"model": "m", "input": [{"role": "user", "content": "hi"}, item, result], "stream": True}
        async with served.http.post(served.url + "/v1/responses", json=again) as got:
            assert got.headers["x-agentsched-program"] == program
            await got.read()
