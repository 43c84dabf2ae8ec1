"""What requests of other APIs than chat completions say, in the form that engines are told things in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentsched.daemon.apis import APIS, Messages, Request, Responses
from agentsched.daemon.errors import ApiError
from agentsched.workloads.acting import ActingMind
from tests.daemon.recordings import CLIENTS, recorded
from tests.daemon.serving import served

PNG = "iVBORw0KGgo="
TEXT = {"type": "text", "text": "a"}


def messages(content: Any, role: str = "user", **fields: Any) -> Request:
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": role, "content": content}]} | fields
    return Messages().read(json.dumps(body).encode())


def responses(*items: Any, **fields: Any) -> Request:
    return Responses().read(json.dumps({"model": "m", "input": list(items)} | fields).encode())


def test_results_of_tools_are_messages_of_their_own_in_order() -> None:
    blocks = [
        {
            "type": "tool_result",
            "tool_use_id": "t1",
            "content": "one",
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "tool_result", "tool_use_id": "t2", "content": [TEXT]},
        TEXT,
    ]
    request = messages(blocks, system="be good")
    assert request.chat.messages == [
        {"role": "system", "content": "be good"},
        {"role": "tool", "tool_call_id": "t1", "content": "one"},
        {"role": "tool", "tool_call_id": "t2", "content": [TEXT]},
        {"role": "user", "content": [TEXT]},
    ]
    assert request.fields == ("system", "messages[0].content[0]", "messages[0].content[1]", "messages[0]")


def test_what_an_assistant_did_comes_back_as_one_message_without_its_thoughts() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        TEXT,
        {"type": "tool_use", "id": "t1", "name": "bash", "input": {"command": "é"}},
    ]
    (message,) = messages(blocks, role="assistant").chat.messages
    function = {"name": "bash", "arguments": '{"command": "é"}'}
    calls = [{"id": "t1", "type": "function", "function": function}]
    assert message == {"role": "assistant", "content": [TEXT], "tool_calls": calls}


def test_a_system_message_may_stand_anywhere() -> None:
    assert messages("be quick", role="system").chat.messages == [{"role": "system", "content": "be quick"}]


def test_items_of_one_answer_are_one_message_and_those_of_the_next_another() -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    request = responses(
        {"role": "user", "content": "do"},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        call | {"call_id": "c1"},
        call | {"call_id": "c2", "name": "g", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
        call | {"call_id": "c3"},
        instructions="be good",
    )
    roles = [message["role"] for message in request.chat.messages]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant"]
    answer, later = request.chat.messages[2], request.chat.messages[5]
    assert [c["function"]["name"] for c in answer["tool_calls"]] == ["f", "n__g"]
    assert (answer["content"], later["content"]) == ([TEXT], None)
    assert request.fields[2:] == ("input[2]", "input[5]", "input[6]", "input[7]")


async def test_a_tool_in_a_namespace_is_called_in_its_namespace() -> None:
    inner = {"type": "function", "name": "spawn", "parameters": {"type": "object"}}
    tools = [{"type": "namespace", "name": "agents", "tools": [inner]}, {"type": "web_search"}]
    async with served() as served_:
        body = {"model": "simulated", "input": "/call agents__spawn {}", "tools": tools}
        status, answer, _ = await served_.post("/v1/responses", body)
    (item,) = answer["output"]
    assert (status, item["name"], item["namespace"], item["arguments"]) == (200, "spawn", "agents", "{}")


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
CHAT_IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}


def test_images_become_those_of_the_chat_api() -> None:
    (message,) = messages([TEXT, IMAGE]).chat.messages
    assert message["content"] == [TEXT, CHAT_IMAGE]
    image = {"type": "input_image", "image_url": CHAT_IMAGE["image_url"]["url"]}  # type: ignore[index]
    (message,) = responses({"role": "user", "content": [image]}).chat.messages
    assert message["content"] == [CHAT_IMAGE]


async def test_an_engine_without_eyes_says_so_naming_the_clients_field() -> None:
    body: Any = {"model": "simulated", "max_tokens": 5, "system": "s"}
    body["messages"] = [{"role": "user", "content": "a"}, {"role": "user", "content": [IMAGE]}]
    async with served() as served_:
        status, answer, _ = await served_.post("/v1/messages", body)
    assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
    assert answer["error"]["message"].startswith("messages[1].content[0]: only parts of type 'text'")


M: dict[str, Any] = {"model": "simulated", "max_tokens": 5}
R: dict[str, Any] = {"model": "simulated"}
GARBAGE = [
    ("/v1/messages", M, "messages: is missing"),
    ("/v1/messages", M | {"messages": [], "max_tokens": 0}, "max_tokens: "),
    ("/v1/messages", {"model": "simulated", "messages": []}, "max_tokens: is missing"),
    ("/v1/messages", M | {"messages": []}, "messages: must not be empty"),
    ("/v1/messages", M | {"messages": [{"role": "tool", "content": ""}]}, "messages[0].role: "),
    ("/v1/messages", M | {"messages": [{"role": "user", "content": 5}]}, "messages[0].content: "),
    ("/v1/messages", M | {"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].c"),
    ("/v1/messages", M | {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].c"),
    ("/v1/messages", M | {"messages": [{"role": "user", "content": [[]]}]}, "messages[0].content[0]: "),
    ("/v1/messages", M | {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages"),
    ("/v1/messages", M | {"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messag"),
    ("/v1/messages", M | {"messages": [], "tools": [{"name": "x"}]}, "tools[0].input_schema: is missing"),
    ("/v1/messages", M | {"messages": [], "system": 5}, "system: "),
    ("/v1/responses", R, "input: is missing"),
    ("/v1/responses", R | {"input": []}, "messages: must not be empty"),
    ("/v1/responses", R | {"input": [{"type": "magic"}]}, "input[0].type: items of type 'magic'"),
    ("/v1/responses", R | {"input": [{"type": []}]}, "input[0].type: "),
    ("/v1/responses", R | {"input": [{"role": "user"}]}, "input[0].content: "),
    ("/v1/responses", R | {"input": [{"role": "user", "content": [5]}]}, "input[0].content[0]: "),
    ("/v1/responses", R | {"input": [{"role": "sage", "content": ""}]}, "input[0].role: "),
    (
        "/v1/responses",
        R | {"input": [{"type": "function_call", "name": "f"}]},
        "input[0].call_id: is missing",
    ),
    ("/v1/responses", R | {"input": "x", "tools": [{"type": "function"}]}, "tools[0].name: is missing"),
    ("/v1/responses", R | {"input": "x", "previous_response_id": "r"}, "previous_response_id: "),
    ("/v1/responses", R | {"input": "x", "background": True}, "background: "),
    ("/v1/completions", R, "prompt: is missing"),
    ("/v1/completions", R | {"prompt": ["a", "b"]}, "prompt: one prompt"),
    ("/v1/completions", R | {"prompt": [1, "b"]}, "prompt[1]: "),
    ("/v1/completions", R | {"prompt": [500]}, "prompt has a token outside"),
    ("/v1/completions", R | {"prompt": []}, "prompt is empty"),
    ("/v1/completions", R | {"prompt": "x", "echo": True}, "echo: "),
    ("/v1/completions", R | {"prompt": "x", "n": 3}, "n: "),
    ("/tokenize", {"prompt": 5}, "prompt: "),
    ("/tokenize", {}, "messages: is missing"),
    ("/v1/messages/count_tokens", {"model": "simulated"}, "messages: is missing"),
]


@pytest.mark.parametrize(("path", "body", "begins"), GARBAGE, ids=lambda value: str(value)[:60])
async def test_garbage_is_refused_in_the_words_of_the_api(path: str, body: Any, begins: str) -> None:
    async with served() as served_:
        for stream in (False, True):
            status, answer, _ = await served_.post(path, body | {"stream": stream})
            assert (status, answer["error"]["message"][: len(begins)]) == (400, begins)
            assert ("type" in answer) == path.startswith("/v1/messages")


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"model', b"\xff", b"[" * 50_000, b"5"])
def test_what_is_no_json_object_is_refused_by_every_api(api: Any, data: bytes) -> None:
    with pytest.raises(ApiError) as error:
        api.read(data)
    assert error.value.status == 400


@pytest.mark.parametrize("clients", CLIENTS)
async def test_all_that_real_clients_send_is_understood(clients: str) -> None:
    async with served(kv_tokens=500_000, mind=ActingMind(2)) as served_:
        for row in recorded(clients):
            async with served_.http.request(
                row["method"], served_.url + row["path"], json=row["body"] or None, headers=row["headers"]
            ) as answer:
                said = await answer.text()
                assert answer.status == 200, said
                if row["method"] == "POST":
                    assert ("event-stream" in answer.content_type) == bool(row["body"].get("stream"))
                    ends = ("[DONE]", "message_stop", "response.completed", "usage")
                    assert any(end in said[-700:] for end in ends), said
