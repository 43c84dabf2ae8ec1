"""Programs, their calls and their tools as the core knows them. Written by ``state.py`` only."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from agentsched.graphs.predict import OWN_PEAKS


class Phase(Enum):
    """Where a call is."""

    __hash__ = object.__hash__  # members are single, and Enum's own is written in Python

    WAITING = auto()
    SENT = auto()
    RUNNING = auto()
    DECODING = auto()


@dataclass(slots=True)
class Call:
    """One live call. Times are monotonic seconds."""

    name: str
    program: str
    arrived_s: float
    prompt_tokens: int
    max_output_tokens: int
    phase: Phase = Phase.WAITING
    started_s: float | None = None
    first: bool = False  # the program's first one that was started


@dataclass(slots=True)
class RunningTool:
    """One tool call that runs: its gap key, when it began, what it is known to have used at its peak, and
    what it told of its progress: (share done, seconds since it began), the latest of each quarter."""

    key: str
    began_s: float
    memory_bytes: int = 0
    expected_bytes: int = 0  # at its peak, as its agent said
    told: dict[int, tuple[float, float]] = field(default_factory=dict)


@dataclass(slots=True)
class Program:
    """One live program. ``order`` numbers programs by arrival; tokens and seconds as named."""

    name: str
    tenant: str
    order: int
    opened_s: float
    weight: float = 1.0  # its tenant's
    priority: int = 0  # its tenant's; higher ones are seated first
    expected_calls: int = 0  # in all, as its owner says; 0: nobody says
    heard_s: float = 0.0  # when anything was last heard of it
    due_s: float | None = None  # when it should have ended, monotonic seconds
    seat: str | None = None
    home: str | None = None  # the engine that last computed it, where its KV may still be
    calls: dict[str, Call] = field(default_factory=dict)
    calls_done: int = 0
    first_prompt_tokens: int = 0
    context_tokens: int = 0
    began: bool = False  # a call of it has been started
    shared_tokens: int = 0  # of its context, held for others before its first call
    context_shrank: bool = False  # its last call was far smaller: a side call, or a new start
    gap_since_s: float | None = None
    gap_is_retry: bool = False  # its last call was aborted, so what it waits for is no tool
    tools: dict[str, str] = field(default_factory=dict)  # asked for or running: tool call -> gap key
    gap_key: str = ""  # what the gap is predicted by: the tool, and its command class once known
    held_tokens: int = 0  # on device, as last reported
    host_held_tokens: int = 0  # in host memory behind it
    host: str = ""  # where its tools run
    parent: str = ""  # the program that began it, if one did
    running: dict[str, RunningTool] = field(default_factory=dict)  # by tool call; paused or not
    killed_bytes: int = 0  # what a tool that was killed needs at least, until its answer arrives
    peaks: deque[int] = field(default_factory=lambda: deque(maxlen=OWN_PEAKS))  # of its last tools, bytes

    @property
    def foreground(self) -> bool:
        return self.seat is not None

    @property
    def waiting(self) -> bool:
        """Whether it has a call at the gateway that needs a seat."""
        return any(call.phase is Phase.WAITING for call in self.calls.values())

    @property
    def in_gap(self) -> bool:
        return not self.calls

    @property
    def awaited(self) -> bool:
        """Whether it is in mid-work: a tool's result is due, or its owner has announced more calls."""
        return bool(self.gap_key) or self.calls_done < self.expected_calls

    @property
    def expected_context_tokens(self) -> int:
        """Its context at least: what it has, or what its live calls bring."""
        tokens = self.context_tokens
        for call in self.calls.values():
            if call.prompt_tokens > tokens:
                tokens = call.prompt_tokens
        return tokens
