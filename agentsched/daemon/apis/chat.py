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
    convert,
    decode_object,
    refuse,
    texts,
)
from agentsched.daemon.errors import ApiError, bad_field
from agentsched.engines.frontend import ChatRequest, TokenLogprob

_UNSERVED = {
    "audio": "only text is served",
    "functions": "send tools instead",
    "function_call": "send tool_choice instead",
    "web_search_options": "there is no web search",
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),
        "send response_format instead",
    ),
    **dict.fromkeys(
        ("min_tokens", "ignore_eos", "stop_token_ids", "bad_words", "use_beam_search", "prompt_logprobs"),
        "is not served",
    ),
    **dict.fromkeys(("chat_template", "chat_template_kwargs"), "the model's own template is used as it is"),
}


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


class ChosenFunction(msgspec.Struct, kw_only=True):
    name: str


class ToolChoice(msgspec.Struct, kw_only=True):
    type: str
    function: ChosenFunction


class Body(Sampled, kw_only=True):
    """The fields that are checked; all others are passed over."""

    messages: list[MessagePart]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
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
        plain = body.response_format is None or body.response_format.get("type") == "text"
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        chat = ChatRequest(
            messages=raw["messages"],
            max_output_tokens=limit,
            response_format=None if plain else body.response_format,
            logit_bias=_logit_bias(body.logit_bias or {}),
            logprobs=_top_logprobs(body),
            **offered(body.tools or [], _choice(body.tool_choice), parallel=body.parallel_tool_calls),
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


def _choice(choice: str | ToolChoice | None) -> str:
    if not isinstance(choice, ToolChoice):
        return choice or "auto"
    if choice.type != "function":
        raise bad_field("tool_choice.type", f"must be 'function', got {choice.type!r}")
    return f"tool:{choice.function.name}"


def offered(tools: list[dict[str, Any]], choice: str, *, parallel: bool | None = None) -> dict[str, Any]:
    """The tools that the model is told of, and whether it must call one, as fields of a ``ChatRequest``.
    ``choice`` is ``none`` or as there. Raises ``ApiError`` (400)."""
    if choice not in ("auto", "none", "required") and not choice.startswith("tool:"):
        raise bad_field("tool_choice", "must be 'auto', 'none', 'required' or a function of the tools")
    if choice not in ("auto", "none") and not tools:
        raise bad_field("tool_choice", "there are no tools in the request to choose from")
    if choice == "none":
        return {}
    single = {} if parallel is None else {"parallel_tool_calls": parallel}
    return {"tools": tools, "tool_choice": choice} | single


def _logit_bias(stated: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in stated.items()}
    except ValueError:
        raise bad_field("logit_bias", "must have numbers of tokens as its keys") from None


def _top_logprobs(body: Body) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise bad_field("top_logprobs", "needs logprobs: true")
    return None


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
        logprobs = _logprobs([score for piece in pieces for score in piece.logprobs])
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": ending.reason}
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
        return self._chunk(delta, logprobs=_logprobs(piece.logprobs))

    def end(self, ending: Ending) -> bytes:
        closing = self._chunk({}, ending.reason)
        if self._include_usage:
            closing += usage_chunk(self._chunk_head, ending)
        return closing + DONE

    def fail(self, error: ApiError) -> bytes:
        return event(error_body(error))

    def _chunk(
        self, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event(self._chunk_head | {"choices": [choice]})


def _logprobs(scores: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not scores:
        return None
    content = [
        _token(score.token, score.logprob) | {"top_logprobs": [_token(*other) for other in score.top]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "bytes": list(token), "logprob": logprob}
