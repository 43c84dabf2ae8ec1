"""Requests on their way to another server, read as far as the daemon needs to.

What an engine takes is its own business: fields are not checked here, and what is not understood is passed
on. Only what says whose a call is, and what is said in it, is looked at; the messages of all APIs are
brought into the form of the chat API for that, since identity compares them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import msgspec

from agentsched.daemon.apis.reading import check_program
from agentsched.daemon.conversations import digest
from agentsched.daemon.errors import ApiError, bad_field
from agentsched.daemon.upstream.bodies import Edits, is_accounting
from agentsched.engines.frontend import ChatRequest

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
PATHS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)

UNSTATED_OUTPUT_TOKENS = 1024
"""Taken to be meant where a request has no limit."""

_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
Message = dict[str, Any]
T = TypeVar("T")


class Body(msgspec.Struct):
    """The fields that are looked at, of all APIs; others are skipped."""

    model: Any = None
    stream: Any = None
    stream_options: Any = msgspec.UNSET
    messages: Any = None
    system: Any = None
    prompt: Any = None
    input: Any = None
    instructions: Any = None
    tools: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    program_id: Any = None
    metadata: Any = None
    nvext: Any = None
    session_id: Any = None
    session_params: Any = None


_decode = msgspec.json.Decoder(Body).decode
_SIGNALS = ("program_id", "metadata", "nvext", "session_id", "session_params")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as the daemon sees it. ``signals`` are the fields that may say whose it is; ``digest`` is
    equal for a retry; ``edits`` is what has to be changed in the body."""

    path: str
    chat: ChatRequest
    signals: dict[str, Any]
    digest: bytes
    stream: bool
    max_output_tokens: int
    edits: Edits


def read(path: str, data: bytes, *, care: bool) -> Asked:
    """``care``: drop what prefix care drops. Raises ``ApiError`` (400) for what is no JSON object."""
    body = _body(data)
    system = body.system
    accounting = care and path == MESSAGES and is_accounting(system)
    if accounting:
        system = system[1:]
    stream = body.stream is True
    signals = {name: value for name in _SIGNALS if (value := getattr(body, name)) is not None}
    if isinstance(body.program_id, str):
        check_program(body.program_id, "program_id")
    options = body.stream_options if isinstance(body.stream_options, dict) else {}
    silent = stream and path in (CHAT, COMPLETIONS) and not options.get("include_usage")
    return Asked(
        path=path,
        chat=_chat(path, body, system),
        signals=signals,
        digest=digest(path.encode() + b"\n" + data),
        stream=stream,
        max_output_tokens=_limit(body),
        edits=Edits(
            program_id=body.program_id is not None,
            accounting=accounting,
            usage=silent,
            options=options if silent and body.stream_options is not msgspec.UNSET else None,
        ),
    )


def _body(data: bytes) -> Body:
    try:
        return _decode(data)
    except msgspec.ValidationError:
        raise ApiError(400, "the body must be a JSON object") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None


def _limit(body: Body) -> int:
    for value in (body.max_completion_tokens, body.max_output_tokens, body.max_tokens):
        if isinstance(value, int) and value > 0:
            return value
    return UNSTATED_OUTPUT_TOKENS


def _chat(path: str, body: Body, system: Any) -> ChatRequest:
    prompt = None
    if path == COMPLETIONS:
        messages = []
        texts = isinstance(body.prompt, str) or _are(body.prompt, int)
        prompt = body.prompt if texts else json.dumps(body.prompt)
    elif path == RESPONSES:
        messages = list(_items(body))
    else:
        if not _are(body.messages, dict):
            raise bad_field("messages", "must be a list of objects")
        messages = body.messages if path == CHAT else list(_anthropic(system, body.messages))
    tools = body.tools if _are(body.tools, dict) else []
    return ChatRequest(model=str(body.model), messages=messages, tools=tools, prompt=prompt)


def _are(values: Any, kind: type[T]) -> TypeGuard[list[T]]:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _items(body: Body) -> Iterator[Message]:
    """Items of the responses API as messages."""
    if body.instructions:
        yield {"role": "system", "content": body.instructions}
    if isinstance(body.input, str):
        yield {"role": "user", "content": body.input}
    elif body.input is not None:
        if not _are(body.input, dict):
            raise bad_field("input", "must be a string or a list of objects")
        for item in body.input:
            kind = item.get("type", "message")
            if kind == "message":
                yield {"role": item.get("role"), "content": item.get("content")}
            elif kind == "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                yield {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function}]}
            elif kind == "function_call_output":
                content = item.get("output")
                yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
            elif kind not in _THOUGHTS:
                yield {"role": str(kind), "content": [item]}


def _anthropic(system: Any, messages: list[Message]) -> Iterator[Message]:
    """Messages of the Anthropic API in the form of the chat API: results of tools stand apart."""
    if system:
        yield {"role": "system", "content": system}
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not _are(content, dict):
            yield message
            continue
        parts: list[Message] = []
        calls = []
        for block in content:
            kind = block.get("type")
            if kind == "tool_result":
                if parts:
                    yield {"role": role, "content": parts}
                    parts = []
                identifier = block.get("tool_use_id")
                yield {"role": "tool", "tool_call_id": identifier, "content": block.get("content")}
            elif kind == "tool_use":
                function = {"name": block.get("name"), "arguments": block.get("input")}
                calls.append({"id": block.get("id"), "function": function})
            elif kind not in _THOUGHTS:
                parts.append(block)
        if parts or calls:
            yield {"role": role, "content": parts} | ({"tool_calls": calls} if calls else {})
