"""What agents use: programs, tools, and clients that say whose call it is.

>>> from agentsched.sdk import agent, headers, tool
>>> @tool
... def add(a: int, b: int) -> int:
...     return a + b
>>> @agent(name="adder")
... def run() -> tuple[int, list[str]]:
...     return add(1, 2), list(headers())
>>> run()
(3, ['x-agentsched-program'])

Events go to the daemon at ``AGENTSCHED_URL``, with the API key ``AGENTSCHED_API_KEY`` where it has keys;
without a daemon the decorators do nothing else. What runs tools in sandboxes is imported when it is first
used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentsched.sdk.clients import instrument
from agentsched.sdk.programs import (
    Program,
    agent,
    current_program,
    headers,
    program,
    tool,
    tool_call,
    tool_run,
)

if TYPE_CHECKING:
    from agentsched.sdk.isolated import ToolDied
    from agentsched.sdk.sandboxed import arun_command, run_command

__all__ = [
    "agent",
    "tool",
    "program",
    "tool_run",
    "tool_call",
    "current_program",
    "headers",
    "instrument",
    "Program",
    "run_command",
    "arun_command",
    "ToolDied",
]

_HOMES = {"run_command": "sandboxed", "arun_command": "sandboxed", "ToolDied": "isolated"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
