"""What the three OpenAI APIs have in common: events, errors, signs of life."""

from __future__ import annotations

from typing import Any

import msgspec

from agentsched.daemon.answers import Ending, ToolCall, Usage
from agentsched.daemon.errors import ApiError, Fault

PING = b": waiting\n\n"
"""A comment, which clients of both completions APIs skip."""

DONE = b"data: [DONE]\n\n"


def event(body: Any) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as the OpenAI APIs say it."""
    fault = Fault(error.message, error.kind, error.param, error.code)
    return {"error": msgspec.structs.asdict(fault)}


def usage_body(usage: Usage) -> dict[str, Any]:
    """Usage as both completions APIs say it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def usage_chunk(head: dict[str, Any], ending: Ending) -> bytes:
    """The chunk with which a stream tells its usage to those who ask for it."""
    return event(head | {"choices": [], "usage": usage_body(ending.usage)})


def tool_call_body(call: ToolCall) -> dict[str, Any]:
    """A tool call as the chat API says it."""
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
