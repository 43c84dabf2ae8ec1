"""The calls of a host as its controller knows them, and the line in which they stand for memory."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from agentsched.core.tool_control.vocabulary import Call

HALF_S = 5.0
"""What a call is expected to need yet halves in so long, if it does not grow."""

NEWS = 64
"""Growth by less than this part is none."""


@dataclass(slots=True)
class Standing:
    """What a program counts for: see ``vocabulary.Worth``."""

    weight: float = 1.0
    priority: int = 0
    kv_tokens: int | None = None
    told_weight: int = 100
    """The CPU weight that was last ordered."""


@dataclass(slots=True)
class Running:
    """One call. ``soft_bytes``: what it is expected to need at most, by what was learned and said."""

    call: Call
    number: int
    soft_bytes: int
    grew_s: float
    """When it was last seen to hold more than ever."""
    memory_bytes: int = 0
    most_bytes: int = 0
    stopped: bool = False
    cap_bytes: int | None = None
    granted_s: float = -math.inf
    waits_since_s: float | None = None
    waited_s: float = 0.0
    frozen_since_s: float | None = None
    protected_bytes: int = 0
    ending: bool = False

    def grows_to(self, now: float, memory_bytes: int) -> None:
        """So much it holds now."""
        if memory_bytes > self.most_bytes + self.most_bytes // NEWS:
            self.most_bytes, self.grew_s = memory_bytes, now
        self.memory_bytes = memory_bytes

    def want_bytes(self, now: float, step_bytes: int) -> int:
        """What it may still need: what is expected, or a quarter of what it holds, if that is more than was
        expected; less and less, the longer it has not grown without being held back."""
        if self.call.limit_bytes is not None and self.memory_bytes >= self.call.limit_bytes:
            return 0
        rest = self.soft_bytes - self.memory_bytes
        if rest <= 0:
            rest = self.memory_bytes // 4
        if not self.stopped:
            rest = int(rest * 0.5 ** ((now - self.grew_s) / HALF_S))
        return max(step_bytes, rest)

    def waits(self, now: float) -> float:
        """For how long it has waited by now without a break, seconds."""
        return 0.0 if self.waits_since_s is None else now - self.waits_since_s

    def set_waiting(self, now: float, waiting: bool) -> None:
        """It waits for memory, or is frozen; or it goes on."""
        if waiting and self.waits_since_s is None:
            self.waits_since_s = now
        elif not waiting and self.waits_since_s is not None:
            self.waited_s += now - self.waits_since_s
            self.waits_since_s = None


def in_line(
    calls: Collection[Running], ranks: dict[str, tuple[int, int]], first: str | None
) -> list[Running]:
    """All calls that are not being ended, the first first: by priority and rank of their programs, then
    those that hold no more than was expected of them, then the older. The one that is first stays so
    unless a call of a higher priority or rank came: to take turns would let nobody come to an end."""

    def key(running: Running) -> tuple[int, int, bool, bool, int]:
        priority, rank = ranks[running.call.program]
        over = running.memory_bytes > running.soft_bytes
        return -priority, -rank, running.call.tool_call != first, over, running.number

    return sorted((running for running in calls if not running.ending), key=key)
