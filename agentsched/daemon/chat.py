"""Chat completions in the OpenAI form: what is read of a request, and what answers look like."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from agentsched.daemon.errors import ApiError, bad_field
from agentsched.engines.frontend import ChatRequest, TokenLogprob

_PATH = re.compile(r" - at `\$\.?(.*?)`$")
_MISSING = re.compile(r"Object missing required field `(.*?)`")
# Accepting these and not doing them would be a silent lie.
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


class Body(msgspec.Struct, kw_only=True):
    """The fields that are checked; all others are passed over."""

    model: str
    messages: list[MessagePart]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    program_id: str | None = None


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request. ``raw`` is the body as it came."""

    chat: ChatRequest
    raw: dict[str, Any]
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    program: str | None


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call of the answer under the id that the daemon minted."""

    id: str
    name: str
    arguments: str


class Piece(msgspec.Struct, frozen=True):
    """What came in one go: text, whole tool calls, and log probabilities if they were asked for."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Ending(msgspec.Struct, frozen=True):
    """How an answer ended well. ``reason``: ``stop``, ``length`` or ``tool_calls``."""

    reason: str
    usage: Usage


def parse(data: bytes) -> Parsed:
    """Check a request's body. Raises ``ApiError`` (400) that names the field at fault."""
    raw = decode_object(data)
    for field, problem in _UNSERVED.items():
        if raw.get(field):
            raise bad_field(field, problem)
    body = convert(raw, Body)
    if body.n not in (None, 1):
        raise bad_field("n", f"only one choice is served, not {body.n}; send n requests instead")
    if body.program_id is not None:
        check_program(body.program_id, "program_id")
    chat = _chat_request(body, raw["messages"])
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Parsed(
        chat=chat,
        raw=raw,
        stop=tuple(text for text in stop if text),
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        program=body.program_id,
    )


def _chat_request(body: Body, messages: list[dict[str, Any]]) -> ChatRequest:
    """What engines are asked; they check the ranges of numbers."""
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    choice = _tool_choice(body)
    plain = body.response_format is None or body.response_format.get("type") == "text"
    given: dict[str, Any] = {
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "parallel_tool_calls": body.parallel_tool_calls,
    }
    return ChatRequest(
        model=body.model,
        messages=messages,
        tools=[] if choice == "none" else body.tools or [],
        tool_choice="auto" if choice == "none" else choice,
        response_format=None if plain else body.response_format,
        max_output_tokens=limit,
        temperature=body.temperature or 0.0,
        # Who asks for chance and gives no seed wants another answer each time.
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        logit_bias=_logit_bias(body.logit_bias or {}),
        logprobs=_top_logprobs(body),
        **{name: value for name, value in given.items() if value is not None},
    )


def _tool_choice(body: Body) -> str:
    choice = body.tool_choice or "auto"
    if isinstance(choice, ToolChoice):
        if choice.type != "function":
            raise bad_field("tool_choice.type", f"must be 'function', got {choice.type!r}")
        choice = f"tool:{choice.function.name}"
    elif choice not in ("auto", "none", "required"):
        raise bad_field("tool_choice", "must be 'auto', 'none', 'required' or a function of the tools")
    if choice not in ("auto", "none") and not body.tools:
        raise bad_field("tool_choice", "there are no tools in the request to choose from")
    return choice


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


def decode_object(data: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises ``ApiError`` (400)."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "the body must be a JSON object")
    return raw


def convert(raw: Any, kind: type[Any], prefix: str = "") -> Any:
    """``raw`` as a value of ``kind``. Raises ``ApiError`` (400) naming the field below ``prefix``."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _PATH.search(message)
        missing = _MISSING.match(message)
        path = ".".join(part.group(1) for part in (found, missing) if part)
        field = f"{prefix}.{path}".strip(".") if prefix else path
        problem = "is missing" if missing else _PATH.sub("", message)
        raise bad_field(field, problem) if field else ApiError(400, problem) from None


def check_program(name: str, field: str) -> None:
    """Program ids travel in headers, labels and logs. Raises ``ApiError`` (400)."""
    if not (0 < len(name) <= 256 and name.isprintable()):
        raise bad_field(field, "must be 1 to 256 printable characters")


class Answer:
    """Writes one answer, whole or as chunks. ``call`` makes its id."""

    def __init__(self, call: str, model: str, created_unix_s: int) -> None:
        self._head = {"id": f"chatcmpl-{call}", "created": created_unix_s, "model": model}

    def whole(self, pieces: Iterable[Piece], ending: Ending) -> bytes:
        """The body of an answer that is not streamed."""
        pieces = list(pieces)
        calls = [_tool_call(call) for piece in pieces for call in piece.tool_calls]
        text = "".join(piece.text for piece in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        logprobs = _logprobs([score for piece in pieces for score in piece.logprobs])
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": ending.reason}
        body = {"object": "chat.completion", "choices": [choice], "usage": ending.usage.body()}
        return msgspec.json.encode(self._head | body)

    def first(self) -> bytes:
        """The chunk that opens a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, piece: Piece, calls_before: int) -> bytes:
        """A chunk of the stream; ``calls_before`` tool calls came in earlier ones."""
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if piece.tool_calls:
            numbered = enumerate(piece.tool_calls, calls_before)
            delta["tool_calls"] = [{"index": index} | _tool_call(call) for index, call in numbered]
        return self._chunk(delta, logprobs=_logprobs(piece.logprobs))

    def last(self, ending: Ending, *, include_usage: bool) -> bytes:
        """What closes a stream that ended well."""
        closing = self._chunk({}, ending.reason)
        if include_usage:
            body = {"object": "chat.completion.chunk", "choices": [], "usage": ending.usage.body()}
            closing += _sse(msgspec.json.encode(self._head | body))
        return closing + _sse(b"[DONE]")

    def _chunk(
        self, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _sse(
            msgspec.json.encode(self._head | {"object": "chat.completion.chunk", "choices": [choice]})
        )


def error_event(error: ApiError) -> bytes:
    """What ends a stream that has begun and cannot go on."""
    return _sse(error.body())


def _sse(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


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


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
