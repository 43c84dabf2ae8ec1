"""``/v1/responses``: what a request says. ``responses_writer.py`` writes the answer.

Items that one answer of the model consisted of (its text, its tool calls) are one message again, as the
model wrote it. Nothing is stored here, so a request that builds on a stored one is refused. What another
model thought (``reasoning`` items) is not shown to this one.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import msgspec

from agentsched.daemon.apis.chat import offered
from agentsched.daemon.apis.contract import Request
from agentsched.daemon.apis.openai import error_body
from agentsched.daemon.apis.reading import (
    Limit,
    Sampled,
    called,
    convert,
    decode_object,
    formatted,
    function,
    refuse,
    warn_once,
)
from agentsched.daemon.apis.responses_writer import ResponseWriter, WireTool
from agentsched.daemon.errors import ApiError, bad_field
from agentsched.engines.frontend import ChatRequest

_STORED = "nothing is stored here; send the whole input each time"
_UNSERVED = {
    "previous_response_id": _STORED,
    "conversation": _STORED,
    "prompt": _STORED,
    "background": "answers are not computed in the background",
}
_PASSED_OVER = frozenset({"reasoning", "compaction", "item_reference"})
_NAMESPACE_MARK = "__"


class FunctionTool(msgspec.Struct, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class NamespaceTool(msgspec.Struct, kw_only=True):
    name: str
    tools: list[FunctionTool]


class Body(Sampled, kw_only=True):
    """The fields that are checked; all others are passed over."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    max_output_tokens: Limit | None = None


class Responses:
    """See ``Api``."""

    path = "/v1/responses"

    def read(self, data: bytes) -> Request:
        raw = decode_object(data)
        refuse(raw, _UNSERVED)
        body: Body = convert(raw, Body)
        tools, wire_tools = _tools(body.tools or [])
        conversation = _Conversation()
        if body.instructions:
            conversation.add("instructions", role="system", content=body.instructions)
        if isinstance(body.input, str):
            conversation.add("input", role="user", content=body.input)
        else:
            for index, item in enumerate(body.input):
                conversation.take(f"input[{index}]", item)
        chat = ChatRequest(
            messages=conversation.messages,
            max_output_tokens=body.max_output_tokens,
            response_format=_format(body.text or {}),
            **offered(tools, _choice(body.tool_choice), parallel=body.parallel_tool_calls),
            **body.sampling(),
        )
        return Request(
            chat=chat,
            raw=raw,
            writer=partial(ResponseWriter, asked=raw, wire_tools=wire_tools),
            stream=bool(body.stream),
            fields=tuple(conversation.fields),
        )

    def error(self, error: ApiError) -> bytes:
        return msgspec.json.encode(error_body(error))


def _choice(choice: str | dict[str, Any] | None) -> str:
    if not isinstance(choice, dict):
        return choice or "auto"
    if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
        raise bad_field("tool_choice", "only a function of the tools can be named")
    return f"tool:{choice['name']}"


def _format(text: dict[str, Any]) -> dict[str, Any] | None:
    shape = text.get("format")
    if not isinstance(shape, dict):
        return None
    if shape.get("type") == "json_object":
        return {"type": "json_object"}
    return formatted(shape.get("type"), shape.get("schema"))


class _Conversation:
    """Items of the API becoming messages. ``fields`` says where each message began."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.fields: list[str] = []

    def add(self, field: str, **message: Any) -> None:
        self.messages.append(message)
        self.fields.append(field)

    def take(self, field: str, item: dict[str, Any]) -> None:
        """One item of the input. Raises ``ApiError`` (400)."""
        kind = item.get("type", "message")
        if kind == "message":
            self._message(field, item)
        elif kind == "function_call":
            name = _required(item, field, "name")
            if namespace := item.get("namespace"):
                name = f"{namespace}{_NAMESPACE_MARK}{name}"
            call = called(_required(item, field, "call_id"), name, _required(item, field, "arguments"))
            self._assistant(field).setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            content = item.get("output")
            if not isinstance(content, str):
                content = _parts(f"{field}.output", content)
            self.add(field, role="tool", tool_call_id=_required(item, field, "call_id"), content=content)
        elif not isinstance(kind, str) or kind not in _PASSED_OVER:
            raise bad_field(f"{field}.type", f"items of type {kind!r} are not served")

    def _message(self, field: str, item: dict[str, Any]) -> None:
        content = item.get("content")
        if not isinstance(content, str):
            content = _parts(f"{field}.content", content)
        role = _required(item, field, "role")
        if role == "assistant":
            self._assistant(field, afresh=True)["content"] = content
        else:
            self.add(field, role=role, content=content)

    def _assistant(self, field: str, *, afresh: bool = False) -> dict[str, Any]:
        """The assistant's message that goes on here, or a new one."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or afresh:
            self.add(field, role="assistant", content=None)
        return self.messages[-1]


def _required(item: dict[str, Any], field: str, name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise bad_field(f"{field}.{name}", "must be a string" if name in item else "is missing")
    return value


def _parts(field: str, content: Any) -> list[dict[str, Any]]:
    """Contents as parts in the form of the chat API."""
    if not isinstance(content, list):
        raise bad_field(field, "must be a string or a list of parts")
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            parts.append({"type": "text", "text": part["refusal"]})
        elif kind == "input_image" and isinstance(part.get("image_url"), str):
            parts.append({"type": "image_url", "image_url": {"url": part["image_url"]}})
        else:
            raise bad_field(f"{field}[{index}]", f"a part of type {kind!r} is not served, or lacks its value")
    return parts


def _tools(tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, WireTool]]:
    """What the model is told of, and how its calls of tools in a namespace are told to the client."""
    told: list[dict[str, Any]] = []
    wire: dict[str, WireTool] = {}
    for index, tool in enumerate(tools):
        kind, field = tool.get("type"), f"tools[{index}]"
        if kind == "function":
            plain = cast("FunctionTool", convert(tool, FunctionTool, field))
            told.append(function(plain.name, plain.description, plain.parameters))
        elif kind == "namespace":
            space = cast("NamespaceTool", convert(tool, NamespaceTool, field))
            for inner in space.tools:
                name = f"{space.name}{_NAMESPACE_MARK}{inner.name}"
                wire[name] = WireTool(inner.name, space.name)
                told.append(function(name, inner.description, inner.parameters))
        else:
            warn_once("responses: tools that the API's vendor runs, and tools of free text, are left out")
    return told, wire
