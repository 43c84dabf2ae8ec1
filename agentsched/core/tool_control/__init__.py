"""Who of the tool calls on one host gets memory and CPU: facts in, actions out, no I/O.

``vocabulary`` has both, ``control`` handles them, ``grants`` shares memory out, ``weights`` CPU time.
"""

from agentsched.core.tool_control.control import ToolControl
from agentsched.core.tool_control.vocabulary import (
    Action,
    Call,
    Cap,
    Freeze,
    HostSeen,
    Kill,
    Protect,
    Seen,
    Terms,
    Thaw,
    Weigh,
    Why,
    Worth,
)

__all__ = [
    "Action",
    "Call",
    "Cap",
    "Freeze",
    "HostSeen",
    "Kill",
    "Protect",
    "Seen",
    "Terms",
    "Thaw",
    "ToolControl",
    "Weigh",
    "Why",
    "Worth",
]
