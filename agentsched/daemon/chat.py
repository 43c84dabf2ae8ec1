"""Chat completions in the OpenAI form: what is read of a request, and what answers look like."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from agentsched.daemon.errors import ApiError, bad_field
from agentsched.engines.frontend import ChatRequest

_PATH = re.compile(r" - at `\$\.?(.*?)`$")
_MISSING = re.compile(r"Object missing required field `(.*?)`")
# Accepting these and not doing them would be a silent lie.
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


class Body(msgspec.Struct, kw_only=True):
    """The fields that are checked; all others are passed over."""

    model: str
    messages: list[MessagePart]
    tools: list[dict[str, Any]] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
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
    """What came in one go: text and whole tool calls."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


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
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    chat = ChatRequest(
        model=body.model,
        messages=raw["messages"],
        tools=[] if raw.get("tool_choice") == "none" else body.tools or [],
        max_output_tokens=limit,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed or 0,
    )
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Parsed(
        chat=chat,
        raw=raw,
        stop=tuple(text for text in stop if text),
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        program=body.program_id,
    )


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
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ending.reason}
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
        return self._chunk(delta)

    def last(self, ending: Ending, *, include_usage: bool) -> bytes:
        """What closes a stream that ended well."""
        closing = self._chunk({}, ending.reason)
        if include_usage:
            body = {"object": "chat.completion.chunk", "choices": [], "usage": ending.usage.body()}
            closing += _sse(msgspec.json.encode(self._head | body))
        return closing + _sse(b"[DONE]")

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _sse(
            msgspec.json.encode(self._head | {"object": "chat.completion.chunk", "choices": [choice]})
        )


def error_event(error: ApiError) -> bytes:
    """What ends a stream that has begun and cannot go on."""
    return _sse(error.body())


def _sse(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
