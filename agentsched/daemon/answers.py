"""What an answer consists of, whatever API it goes out by."""

from __future__ import annotations

import msgspec

from agentsched.engines.frontend import TokenLogprob


class ToolCall(msgspec.Struct, frozen=True):
    """A tool call of the answer under the id that the daemon minted; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


class Piece(msgspec.Struct, frozen=True):
    """What came in one go: text and, after it, whole tool calls; log probabilities if they were asked for."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a call; ``cached_tokens`` of the prompt were held already."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Ending(msgspec.Struct, frozen=True):
    """How an answer ended well. ``reason``: ``stop``, ``length`` or ``tool_calls``; ``stop_string`` is
    the one that ended it, if one did."""

    reason: str
    usage: Usage
    stop_string: str | None = None
