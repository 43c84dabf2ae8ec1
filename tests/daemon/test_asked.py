"""Tool calls that models asked for, as they are listed for whoever watches commands."""

from __future__ import annotations

import json

import pytest

from agentsched.daemon.asked import KEPT_S, MOST_CHARS, AskedTool, AskedTools
from agentsched.daemon.upstream.watching import Watch
from agentsched.engines.upstream.paths import CHAT, MESSAGES, RESPONSES
from tests.daemon.keyed import ACME, BOLT, two_tenants
from tests.daemon.serving import served

TOOLS = "/agentsched/v1/tool-calls"
CALL = '/call bash {"command": "ls"}'


async def test_tool_calls_are_listed_by_run_or_program_with_when_their_results_came() -> None:
    async with served() as served_:
        body = {"model": "simulated", "messages": [{"role": "user", "content": CALL}]}
        _, answer, _ = await served_.post("/program/mine/v1/chat/completions", body)
        message = answer["choices"][0]["message"]
        await served_.chat("/call other {}", program="q")
        for run, tools in (("mine", ["bash"]), ("q", ["other"]), ("else", [])):
            listed = (await served_.ask("GET", f"{TOOLS}?run={run}"))[1]["tool_calls"]
            assert [each["tool"] for each in listed] == tools
        (first, _) = (await served_.ask("GET", TOOLS))[1]["tool_calls"]
        assert (first["tool_call"], first["run"]) == (message["tool_calls"][0]["id"], "mine")
        assert json.loads(first["arguments"]) == {"command": "ls"}
        assert first["result_age_s"] is None
        result = {"role": "tool", "tool_call_id": first["tool_call"], "content": "x"}
        body["messages"] = [*body["messages"], message, result]
        await served_.post("/program/mine/v1/chat/completions", body)
        (first, _) = (await served_.ask("GET", TOOLS))[1]["tool_calls"]
        assert 0.0 <= first["result_age_s"] <= first["age_s"]


async def test_a_tenant_sees_its_own() -> None:
    async with served(declared=two_tenants()) as served_:
        await served_.chat(CALL, key=ACME)
        for key, count in ((ACME, 1), (BOLT, 0)):
            assert len((await served_.ask("GET", TOOLS, x_api_key=key))[1]["tool_calls"]) == count


def test_they_are_forgotten_a_while_after_their_results_and_long_ones_are_not_kept() -> None:
    asked = AskedTools()
    for name, arguments, asked_s in (
        ("a", "{}", 1.0),
        ("b", "{}", 1.1),
        ("long", "x" * (MOST_CHARS + 1), 1.2),
    ):
        asked.note(AskedTool(name, "bash", arguments, "p", "", asked_s))
    asked.results(["a", "unknown"], 2.0)
    assert [each.tool_call for each in asked.listed("p", 2.0 + KEPT_S)] == ["a", "b"]
    assert [each.tool_call for each in asked.listed("p", 2.1 + KEPT_S)] == ["b"]


def stream(*events: object) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def delta(**tool: object) -> object:
    return {"choices": [{"index": 0, "delta": {"tool_calls": [tool]}}]}


CHAT_STREAM = stream(
    delta(index=0, id="call_1", function={"name": "bash", "arguments": ""}),
    delta(index=1, id="call_2", function={"name": "bash", "arguments": '{"b"'}),
    delta(index=0, function={"arguments": '{"a": '}),
    delta(index=1, function={"arguments": ": 2}"}),
    delta(index=0, function={"arguments": "1}"}),
)
MESSAGES_STREAM = stream(
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "call_1", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "input_json_delta", "partial_json": '{"a": '},
    },
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "call_2", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 2,
        "delta": {"type": "input_json_delta", "partial_json": '{"b": 2}'},
    },
)
RESPONSES_STREAM = stream(
    *(
        {
            "type": "response.output_item.done",
            "item": {"type": "function_call", "call_id": name, "name": "bash", "arguments": arguments},
        }
        for name, arguments in (("call_1", '{"a": 1}'), ("call_2", '{"b": 2}'))
    )
)
CHAT_WHOLE = {
    "choices": [
        {
            "index": 0,
            "message": {
                "tool_calls": [
                    {"id": "call_1", "function": {"name": "bash", "arguments": '{"a": 1}'}},
                    {"id": "call_2", "function": {"name": "bash", "arguments": '{"b": 2}'}},
                ]
            },
        }
    ]
}
MESSAGES_WHOLE = {
    "type": "message",
    "content": [
        {"type": "tool_use", "id": "call_1", "name": "bash", "input": {"a": 1}},
        {"type": "tool_use", "id": "call_2", "name": "bash", "input": {"b": 2}},
    ],
}


@pytest.mark.parametrize(
    ("path", "events", "data"),
    [
        (CHAT, True, CHAT_STREAM),
        (MESSAGES, True, MESSAGES_STREAM),
        (RESPONSES, True, RESPONSES_STREAM),
        (CHAT, False, json.dumps(CHAT_WHOLE).encode()),
        (MESSAGES, False, json.dumps(MESSAGES_WHOLE).encode()),
    ],
)
def test_arguments_are_read_from_what_other_servers_answer(path: str, events: bool, data: bytes) -> None:
    watch = Watch(path, events=events)
    for at in range(0, len(data), 50):
        watch.feed(data[at : at + 50])
    told = {name: json.loads("".join(pieces)) for name, pieces in watch.finish().arguments.items()}
    assert told == {"call_1": {"a": 1}, "call_2": {"b": 2}}
