"""Intent and feedback for servers of the Model Context Protocol, in the ``_meta`` of ``tools/call``.

A client (or the model, where a tool has an argument for it) sends a hint with its call::

    {"method": "tools/call", "params": {"name": "bash", "arguments": {...},
     "_meta": {"agentsched/hint": "memory:2G,time:90s"}}}

and the server answers with what came of it::

    spec = ToolSpec(command=command, hint=hint_of(params))
    result = await sandbox.arun(spec)
    return with_feedback({"content": [{"type": "text", "text": result.text}]}, result)

No package of the protocol is needed: these are plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agentsched.cgroups.contract import ToolResult
from agentsched.cgroups.hints import MCP_HINT, Hint, of_mcp

MCP_FEEDBACK = "agentsched/feedback"

__all__ = ["MCP_FEEDBACK", "MCP_HINT", "hint_of", "with_feedback"]


def hint_of(params: Mapping[str, Any]) -> Hint | None:
    """The hint of a ``tools/call``; one that cannot be read counts as none."""
    return of_mcp(params)[0]


def with_feedback(answer: Mapping[str, Any], result: ToolResult) -> dict[str, Any]:
    """The answer to a ``tools/call`` with the feedback in ``_meta``, and its note, if there is one, as a last
    piece of text that the model reads. ``isError`` is set where a limit ended the command."""
    record = msgspec.to_builtins(result.feedback)
    made = dict(answer) | {"_meta": {**answer.get("_meta", {}), MCP_FEEDBACK: record}}
    if result.feedback.note:
        made["content"] = [
            *answer.get("content", []),
            {"type": "text", "text": f"agentsched: {result.feedback.note}"},
        ]
    if result.timed_out or result.oom_killed:
        made["isError"] = True
    return made
