"""``/v1/messages``: the Anthropic API.

One message of this API may become several: results of tools are messages of their own, in the order in
which they stand. A message of role ``system`` may stand anywhere. What a model thought is not shown to
the next one. ``cache_control`` has no meaning here: all prompts are cached.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from agentsched.daemon.answers import Ending, Piece, ToolCall, Usage
from agentsched.daemon.apis.chat import offered
from agentsched.daemon.apis.contract import Request
from agentsched.daemon.apis.reading import (
    Limit,
    Sampled,
    called,
    convert,
    decode_object,
    formatted,
    function,
    texts,
    warn_once,
)
from agentsched.daemon.errors import ApiError, bad_field
from agentsched.engines.frontend import ChatRequest

_THOUGHTS = ("thinking", "redacted_thinking")
_ROLES = ("user", "assistant", "system")
_ERROR_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class Message(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[dict[str, Any]]


class Choice(msgspec.Struct, kw_only=True):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool = False

    def told(self) -> str:
        """As engines are told of it."""
        return {"any": "required", "tool": f"tool:{self.name}"}.get(self.type, self.type)


class OutputFormat(msgspec.Struct, kw_only=True):
    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct, kw_only=True):
    format: OutputFormat | None = None


class Tool(msgspec.Struct, kw_only=True):
    name: str
    description: str | None = None
    input_schema: dict[str, Any]


class Body(Sampled, kw_only=True):
    """The fields that are checked; all others are passed over."""

    messages: list[Message]
    max_tokens: Limit
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Choice | None = None
    output_config: OutputConfig | None = None
    stop_sequences: list[str] | None = None


class Messages:
    """See ``Api``."""

    path = "/v1/messages"

    def read(self, data: bytes, *, counting: bool = False) -> Request:
        """``counting``: only the prompt matters, and an answer needs no limit."""
        raw = decode_object(data)
        body: Body = convert({"max_tokens": 1} | raw if counting else raw, Body)
        conversation = _Conversation()
        if body.system:
            conversation.take("system", Message(role="system", content=body.system))
        for index, message in enumerate(body.messages):
            conversation.take(f"messages[{index}]", message)
        choice = body.tool_choice or Choice(type="auto")
        shape = body.output_config.format if body.output_config else None
        chat = ChatRequest(
            messages=conversation.messages,
            max_output_tokens=body.max_tokens,
            response_format=formatted(shape.type, shape.schema) if shape else None,
            **offered(_tools(body.tools or []), choice.told(), parallel=not choice.disable_parallel_tool_use),
            **body.sampling(),
        )
        return Request(
            chat=chat,
            raw=raw,
            writer=partial(MessageWriter, model=body.model),
            stop=texts(body.stop_sequences),
            stream=bool(body.stream),
            fields=tuple(conversation.fields),
        )

    def error(self, error: ApiError) -> bytes:
        return msgspec.json.encode(_error_body(error))


class _Conversation:
    """Messages of the API becoming ours. ``fields`` says where each of ours began."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.fields: list[str] = []

    def take(self, field: str, message: Message) -> None:
        """One message. Raises ``ApiError`` (400)."""
        if message.role not in _ROLES:
            raise bad_field(f"{field}.role", f"{message.role!r} is not one of {', '.join(_ROLES)}")
        if isinstance(message.content, str):
            self._add(field, {"role": message.role, "content": message.content})
            return
        inside = field if field == "system" else f"{field}.content"
        if message.role == "assistant":
            self._add(field, _assistant(inside, message.content))
            return
        parts: list[dict[str, Any]] = []
        for index, block in enumerate(message.content):
            if block.get("type") == "tool_result":
                self._flush(field, message.role, parts)
                self._result(f"{inside}[{index}]", block)
            else:
                parts.append(_part(f"{inside}[{index}]", block))
        self._flush(field, message.role, parts)

    def _flush(self, field: str, role: str, parts: list[dict[str, Any]]) -> None:
        if parts:
            self._add(field, {"role": role, "content": list(parts)})
            parts.clear()

    def _result(self, field: str, block: dict[str, Any]) -> None:
        content = block.get("content") or ""
        if not isinstance(content, str):
            if not isinstance(content, list):
                raise bad_field(f"{field}.content", "must be a string or a list of blocks")
            content = [_part(f"{field}.content[{n}]", part) for n, part in enumerate(content)]
        identifier = block.get("tool_use_id")
        if not isinstance(identifier, str):
            raise bad_field(f"{field}.tool_use_id", "must be a string")
        self._add(field, {"role": "tool", "tool_call_id": identifier, "content": content})

    def _add(self, field: str, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self.fields.append(field)


def _assistant(field: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    parts, calls = [], []
    for index, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "tool_use":
            name, identifier = block.get("name"), block.get("id")
            if not isinstance(name, str) or not isinstance(identifier, str):
                raise bad_field(f"{field}[{index}]", "id and name must be strings")
            calls.append(called(identifier, name, block.get("input") or {}))
        elif kind not in _THOUGHTS:
            parts.append(_part(f"{field}[{index}]", block))
    message: dict[str, Any] = {"role": "assistant", "content": parts or None}
    return message | ({"tool_calls": calls} if calls else {})


def _part(field: str, block: Any) -> dict[str, Any]:
    """A block as a part in the form of the chat API."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    if kind == "image" and isinstance(source := block.get("source"), dict):
        if source.get("type") == "url":
            return {"type": "image_url", "image_url": {"url": source.get("url")}}
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
        return {"type": "image_url", "image_url": {"url": url}}
    raise bad_field(field, f"a block of type {kind!r} is not served, or lacks its value")


def _tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    told = []
    for index, raw in enumerate(tools):
        kind = raw.get("type", "custom")
        if kind == "custom":
            tool: Tool = convert(raw, Tool, f"tools[{index}]")
            told.append(function(tool.name, tool.description, tool.input_schema))
        else:
            warn_once("messages: tools that only the vendor's own models know, or it runs, are left out")
    return told


class MessageWriter:
    """See ``Writer``. Text and each tool call are blocks of their own."""

    def __init__(self, call: str, created_unix_s: int, *, model: str) -> None:
        self._head = {"id": f"msg_{call}", "type": "message", "role": "assistant", "model": model}
        self._blocks = 0
        self._in_text = False

    def whole(self, pieces: Sequence[Piece], ending: Ending) -> bytes:
        blocks: list[dict[str, Any]] = []
        for piece in pieces:
            if piece.text and blocks and blocks[-1]["type"] == "text":
                blocks[-1]["text"] += piece.text
            elif piece.text:
                blocks.append({"type": "text", "text": piece.text})
            blocks += (_tool_use(call) | {"input": json.loads(call.arguments)} for call in piece.tool_calls)
        body = {"content": blocks, **_stopped(ending), "usage": _usage(ending.usage)}
        return msgspec.json.encode(self._head | body)

    def begin(self, usage: Usage) -> bytes:
        opened: dict[str, Any] = {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }
        return _event("message_start", message=self._head | opened)

    def ping(self) -> bytes:
        return _event("ping")

    def piece(self, piece: Piece) -> bytes:
        data = b""
        if piece.text:
            if not self._in_text:
                data += self._open({"type": "text", "text": ""})
                self._in_text = True
            data += self._delta({"type": "text_delta", "text": piece.text})
        for call in piece.tool_calls:
            data += self._close_text() + self._open(_tool_use(call) | {"input": {}})
            data += self._delta({"type": "input_json_delta", "partial_json": call.arguments})
            data += self._close()
        return data

    def end(self, ending: Ending) -> bytes:
        data = self._close_text()
        data += _event("message_delta", delta=_stopped(ending), usage=_usage(ending.usage))
        return data + _event("message_stop")

    def fail(self, error: ApiError) -> bytes:
        return _event("error", error=_error_body(error)["error"])

    def _open(self, block: dict[str, Any]) -> bytes:
        return _event("content_block_start", index=self._blocks, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks, delta=delta)

    def _close(self) -> bytes:
        self._blocks += 1
        return _event("content_block_stop", index=self._blocks - 1)

    def _close_text(self) -> bytes:
        if not self._in_text:
            return b""
        self._in_text = False
        return self._close()


def _event(kind: str, **fields: Any) -> bytes:
    body = {"type": kind} | fields
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(body) + b"\n\n"


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _stopped(ending: Ending) -> dict[str, Any]:
    reason = {"length": "max_tokens", "tool_calls": "tool_use"}.get(ending.reason, "end_turn")
    if ending.stop_string is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": ending.stop_string}


def _usage(usage: Usage) -> dict[str, int]:
    """In this API ``input_tokens`` are those that were not cached."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }


def _error_body(error: ApiError) -> dict[str, Any]:
    kind = _ERROR_KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = error.message
    if error.code == "context_length_exceeded":
        # By these words agents of this API know that they have to shorten their history.
        message = f"prompt is too long: {message}"
    return {"type": "error", "error": {"type": kind, "message": message}}
