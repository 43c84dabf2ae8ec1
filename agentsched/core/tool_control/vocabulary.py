"""What a tool controller is told, and what it orders. Sizes are bytes, times seconds of one monotonic clock.

An agent is never named in an order: only tool calls are, and programs where CPU time is shared out.
"""

from __future__ import annotations

import enum

from agentsched.core.events import LEAST_WEIGHT, MOST_PRIORITY, MOST_WEIGHT, Value

MIB = 1 << 20


class Terms(Value, frozen=True, kw_only=True):
    """By what a host is run.

    ``reserve_share`` of its memory (at least ``least_reserve_bytes``, at most a quarter of it) is for agents,
    the daemon and all that is no tool call. When no more than ``tight_share`` is left beside that, growth is
    rationed, until ``ease_share`` is. ``step_bytes``: the least that is granted at once (less on a small
    host, see ``step``). ``pace_s``: so often
    a call that is not first in line gets more. ``grace_s``: so long the first in line waits for memory
    before another call is ended for it, and so long a frozen call waits. ``settle_s``: from an end to the
    next one, for its memory comes back first. ``stall_s``: no call waits longer for memory; then it gets
    some, or is ended.
    """

    reserve_share: float = 0.05
    least_reserve_bytes: int = 256 * MIB
    tight_share: float = 0.10
    ease_share: float = 0.15
    step_bytes: int = 16 * MIB
    pace_s: float = 0.25
    grace_s: float = 1.0
    settle_s: float = 0.25
    stall_s: float = 60.0
    calm_look_s: float = 1.0
    tight_look_s: float = 0.1

    def __post_init__(self) -> None:
        Value.__post_init__(self)
        for name in ("reserve_share", "tight_share", "ease_share"):
            if not getattr(self, name) <= 0.5:
                raise ValueError(f"Terms.{name} must be from 0 to 0.5, got {getattr(self, name)}")
        if self.ease_share < self.tight_share:
            raise ValueError("Terms.ease_share must be at least tight_share")
        for name in ("step_bytes", "pace_s", "grace_s", "settle_s", "stall_s", "calm_look_s", "tight_look_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Terms.{name} must be above 0, got {getattr(self, name)}")

    def reserve_bytes(self, total_bytes: int) -> int:
        """What is kept from tool calls on a host of that size."""
        wanted = max(self.least_reserve_bytes, int(self.reserve_share * total_bytes))
        return min(wanted, total_bytes // 4)

    def step(self, total_bytes: int) -> int:
        """The least that is granted at once on a host of that size."""
        return max(MIB, min(self.step_bytes, total_bytes // 256))


class Call(Value, frozen=True, kw_only=True):
    """A tool call that began. ``key``: its tool and the class of its command, as in ``bash:pytest``.
    ``stated_bytes``: what its agent says that it needs at most; 0: nothing. ``limit_bytes``: its own hard
    limit. ``intent``: CPU weight by what its agent says, 100 being usual."""

    tool_call: str
    program: str
    key: str = ""
    stated_bytes: int = 0
    limit_bytes: int | None = None
    intent: int = 100


class Worth(Value, frozen=True, kw_only=True):
    """What is known of a program's worth: its tenant's weight and priority, and the tokens of KV that an
    engine keeps for it while its tools run. None: says nothing new."""

    program: str
    weight: float | None = None
    priority: int | None = None
    kv_tokens: int | None = None

    def __post_init__(self) -> None:
        Value.__post_init__(self)
        if self.weight is not None and not LEAST_WEIGHT <= self.weight <= MOST_WEIGHT:
            raise ValueError(
                f"Worth.weight must be from {LEAST_WEIGHT} to {MOST_WEIGHT}, got {self.weight!r}"
            )
        if self.priority is not None and self.priority > MOST_PRIORITY:
            raise ValueError(f"Worth.priority must be from 0 to {MOST_PRIORITY}, got {self.priority}")


class HostSeen(Value, frozen=True, kw_only=True):
    """Memory of the host: all of it, and what could be had at once."""

    total_bytes: int
    free_bytes: int


class Seen(Value, frozen=True, kw_only=True):
    """Of one call: what it holds. ``stopped``: tasks of it wait for memory at its cap, or hardly go on."""

    memory_bytes: int
    stopped: bool = False


class Why(enum.Enum):
    """Why a call is ended."""

    SHORT = "short"
    """Another one could not go on, and this one is last in line."""
    WAITED = "waited"
    """It waited for memory as long as any call may."""
    TOO_BIG = "too big"
    """It is alone, and there is no more."""


class Cap(Value, frozen=True, kw_only=True):
    """The call may hold so much from now on, and waits at that; None: as much as it likes."""

    tool_call: str
    limit_bytes: int | None


class Protect(Value, frozen=True, kw_only=True):
    """So much of what the call holds should be taken from others first; 0: nothing."""

    tool_call: str
    held_bytes: int


class Freeze(Value, frozen=True, kw_only=True):
    """Stop the call."""

    tool_call: str


class Thaw(Value, frozen=True, kw_only=True):
    """Let the call go on."""

    tool_call: str


class Kill(Value, frozen=True, kw_only=True):
    """End the call, and tell its agent why. ``waited_s``: so long it had waited for memory."""

    tool_call: str
    why: Why
    memory_bytes: int
    waited_s: float = 0.0


class Weigh(Value, frozen=True, kw_only=True):
    """Share of CPU time among programs, 1 to 10000; 100 is usual."""

    program: str
    weight: int


Action = Cap | Protect | Freeze | Thaw | Kill | Weigh
