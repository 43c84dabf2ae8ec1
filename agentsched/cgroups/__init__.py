"""Sandboxes: every tool call in a control group leaf of its own, where the machine has them.

    with Sandbox.open(program="p1") as sandbox:
        result = sandbox.run(ToolSpec(command="pytest -q", timeout_s=60))

``contract`` says what a sandbox can do; ``v2``, ``hybrid`` and ``none`` do it; ``detect`` chooses.
Names are imported when first used: the watchdog process lives in this package too and stays small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentsched.cgroups.contract import (
        Backend,
        Cancelled,
        Capabilities,
        CommandUnusable,
        DiskUse,
        Ending,
        Feedback,
        HostRefused,
        Isolation,
        Leaf,
        Limits,
        SandboxError,
        SpecRefused,
        ToolResult,
        ToolSpec,
        Unsupported,
        Usage,
    )
    from agentsched.cgroups.hints import Hint, Level
    from agentsched.cgroups.sandbox import Sandbox
    from agentsched.cgroups.spawn import run_tool, run_tool_sync
    from agentsched.cgroups.watching import Progress

__all__ = [
    "Sandbox",
    "ToolSpec",
    "ToolResult",
    "Usage",
    "Progress",
    "Feedback",
    "Ending",
    "Limits",
    "Isolation",
    "DiskUse",
    "Hint",
    "Level",
    "run_tool",
    "run_tool_sync",
    "Leaf",
    "Backend",
    "Capabilities",
    "SandboxError",
    "SpecRefused",
    "CommandUnusable",
    "HostRefused",
    "Cancelled",
    "Unsupported",
]

_HOMES = {"Sandbox": "sandbox", "run_tool": "spawn", "run_tool_sync": "spawn"}
_HOMES |= {"Hint": "hints", "Level": "hints", "Progress": "watching"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'contract')}"), name)
    globals()[name] = value
    return value
