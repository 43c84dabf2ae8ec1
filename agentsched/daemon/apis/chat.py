"""``/v1/chat/completions``: the form that nearly all agents speak, and that engines are told things in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from agentsched.daemon.answers import Ending, Piece, Usage
from agentsched.daemon.apis.contract import Request
from agentsched.daemon.apis.openai import (
    DONE,
    PING,
    error_body,
    event,
    tool_call_body,
    usage_body,
    usage_chunk,
)
from agentsched.daemon.apis.reading import (
    Limit,
    Sampled,
    Seed,
    convert,
    decode_object,
    refuse,
    texts,
    warn_once,
)
from agentsched.daemon.errors import ApiError, bad_field
from agentsched.engines.frontend import ChatRequest

_UNSERVED = {"logprobs": "log probabilities are not served", "audio": "only text is served"}


class Function(msgspec.Struct, kw_only=True):
    name: str
    arguments: str = ""


class CallPart(msgspec.Struct, kw_only=True):
    function: Function
    id: str = ""


class MessagePart(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[CallPart] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool = False


class Body(Sampled, kw_only=True):
    """The fields that are checked; all others are passed over."""

    messages: list[MessagePart]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None


class ChatCompletions:
    """See ``Api``."""

    path = "/v1/chat/completions"

    def read(self, data: bytes) -> Request:
        raw = decode_object(data)
        refuse(raw, _UNSERVED)
        body: Body = convert(raw, Body)
        if body.n not in (None, 1):
            raise bad_field("n", f"only one choice is served, not {body.n}; send n requests instead")
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        chat = ChatRequest(
            messages=raw["messages"],
            tools=offered(body.tools or [], body.tool_choice),
            max_output_tokens=limit,
            seed=body.seed or 0,
            **body.sampling(),
        )
        options = body.stream_options or StreamOptions()
        return Request(
            chat=chat,
            raw=raw,
            writer=partial(ChatWriter, model=body.model, include_usage=options.include_usage),
            stop=texts(body.stop),
            stream=bool(body.stream),
        )

    def error(self, error: ApiError) -> bytes:
        return msgspec.json.encode(error_body(error))


def offered(tools: list[dict[str, Any]], choice: str | dict[str, Any] | None) -> list[dict[str, Any]]:
    """The tools that the model is told of. No engine here can be forced to call one."""
    if choice == "none":
        return []
    if choice not in (None, "auto"):
        warn_once("tool_choice: a model that is told to call a tool may still answer in words")
    return tools


class ChatWriter:
    """See ``Writer``."""

    def __init__(self, call: str, created_unix_s: int, *, model: str, include_usage: bool) -> None:
        self._head = {"id": f"chatcmpl-{call}", "created": created_unix_s, "model": model}
        self._chunk_head = self._head | {"object": "chat.completion.chunk"}
        self._include_usage = include_usage
        self._tools = 0

    def whole(self, pieces: Sequence[Piece], ending: Ending) -> bytes:
        calls = [tool_call_body(call) for piece in pieces for call in piece.tool_calls]
        text = "".join(piece.text for piece in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ending.reason}
        body = {"object": "chat.completion", "choices": [choice], "usage": usage_body(ending.usage)}
        return msgspec.json.encode(self._head | body)

    def begin(self, usage: Usage) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def ping(self) -> bytes:
        return PING

    def piece(self, piece: Piece) -> bytes:
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if piece.tool_calls:
            numbered = enumerate(piece.tool_calls, self._tools)
            delta["tool_calls"] = [{"index": index} | tool_call_body(call) for index, call in numbered]
            self._tools += len(piece.tool_calls)
        return self._chunk(delta)

    def end(self, ending: Ending) -> bytes:
        closing = self._chunk({}, ending.reason)
        if self._include_usage:
            closing += usage_chunk(self._chunk_head, ending)
        return closing + DONE

    def fail(self, error: ApiError) -> bytes:
        return event(error_body(error))

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event(self._chunk_head | {"choices": [choice]})
