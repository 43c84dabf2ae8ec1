"""``/v1/completions``: text that is continued as it is, without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from agentsched.daemon.answers import Ending, Piece, Usage
from agentsched.daemon.apis.chat import StreamOptions
from agentsched.daemon.apis.contract import Request
from agentsched.daemon.apis.openai import DONE, PING, error_body, event, usage_body, usage_chunk
from agentsched.daemon.apis.reading import (
    Limit,
    Sampled,
    convert,
    decode_object,
    refuse,
    texts,
)
from agentsched.daemon.errors import ApiError, bad_field
from agentsched.engines.frontend import ChatRequest

DEFAULT_OUTPUT_TOKENS = 16
"""The API's own."""

_UNSERVED = {
    "logprobs": "log probabilities are not served",
    "echo": "the prompt is not echoed",
    "suffix": "text is continued only at its end",
}


class Body(Sampled, kw_only=True):
    """The fields that are checked; all others are passed over."""

    prompt: str | list[int]
    max_tokens: Limit | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None


class Completions:
    """See ``Api``."""

    path = "/v1/completions"

    def read(self, data: bytes) -> Request:
        raw = decode_object(data)
        refuse(raw, _UNSERVED)
        prompt = raw.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise bad_field("prompt", "one prompt a request is served; send more requests instead")
            raw = raw | {"prompt": prompt[0]}
        body: Body = convert(raw, Body)
        for field in ("n", "best_of"):
            if getattr(body, field) not in (None, 1):
                raise bad_field(field, "only one choice is served; send more requests instead")
        chat = ChatRequest(
            messages=[],
            prompt=raw["prompt"],
            max_output_tokens=body.max_tokens or DEFAULT_OUTPUT_TOKENS,
            **body.sampling(),
        )
        options = body.stream_options or StreamOptions()
        return Request(
            chat=chat,
            raw=raw,
            writer=partial(CompletionWriter, model=body.model, include_usage=options.include_usage),
            stop=texts(body.stop),
            stream=bool(body.stream),
        )

    def error(self, error: ApiError) -> bytes:
        return msgspec.json.encode(error_body(error))


class CompletionWriter:
    """See ``Writer``. A tool call that the model wrote is text here."""

    def __init__(self, call: str, created_unix_s: int, *, model: str, include_usage: bool) -> None:
        self._head = {
            "id": f"cmpl-{call}",
            "object": "text_completion",
            "created": created_unix_s,
            "model": model,
        }
        self._include_usage = include_usage

    def whole(self, pieces: Sequence[Piece], ending: Ending) -> bytes:
        choice = _choice("".join(map(_text, pieces)), ending)
        return msgspec.json.encode(self._head | {"choices": [choice], "usage": usage_body(ending.usage)})

    def begin(self, usage: Usage) -> bytes:
        return b""

    def ping(self) -> bytes:
        return PING

    def piece(self, piece: Piece) -> bytes:
        return event(self._head | {"choices": [_choice(_text(piece))]})

    def end(self, ending: Ending) -> bytes:
        closing = event(self._head | {"choices": [_choice("", ending)]})
        if self._include_usage:
            closing += usage_chunk(self._head, ending)
        return closing + DONE

    def fail(self, error: ApiError) -> bytes:
        return event(error_body(error))


def _choice(text: str, ending: Ending | None = None) -> dict[str, Any]:
    reason = None if ending is None else "length" if ending.reason == "length" else "stop"
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}


def _text(piece: Piece) -> str:
    calls = (f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in piece.tool_calls)
    return "\n".join([piece.text, *calls]) if piece.tool_calls else piece.text
