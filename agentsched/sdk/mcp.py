"""Intent and feedback for servers of the Model Context Protocol, in the ``_meta`` of ``tools/call``.

A client (or the model, where a tool has an argument for it) sends a hint with its call::

    {"method": "tools/call", "params": {"name": "bash", "arguments": {...},
     "_meta": {"agentsched/hint": "memory:2G,time:90s"}}}

and the server answers with what came of it::

    spec = ToolSpec(command=command, hint=hint_of(params))
    result = await sandbox.arun(spec)
    return with_feedback({"content": [{"type": "text", "text": result.text}]}, result)

A client in an agent says also whose call it is, for a server that ``agentsched mcp-run`` reports::

    with program("researcher"):
        await session.call_tool("search", {"text": "..."}, meta=call_meta(hint="time:30s"))

No package of the protocol is needed: these are plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agentsched.cgroups.contract import ToolResult
from agentsched.cgroups.hints import MCP_HINT, Hint, of_mcp
from agentsched.sdk.programs import current_program, next_tool_call

MCP_FEEDBACK = "agentsched/feedback"
MCP_PROGRAM = "agentsched/program"
MCP_TOOL_CALL = "agentsched/tool_call"

__all__ = [
    "MCP_FEEDBACK",
    "MCP_HINT",
    "MCP_PROGRAM",
    "MCP_TOOL_CALL",
    "call_meta",
    "hint_of",
    "with_feedback",
]


def call_meta(hint: str = "", tool_call: str = "") -> dict[str, str]:
    """The ``_meta`` of a ``tools/call``: the running program, the model's call that it answers (the one
    given, else that of ``sdk.tool_call``, else a new id), and a hint. Outside a program: the hint alone."""
    running = current_program()
    said = {MCP_HINT: hint} if hint else {}
    if running is None:
        return said
    return said | {MCP_PROGRAM: running.id, MCP_TOOL_CALL: tool_call or next_tool_call(running)}


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
