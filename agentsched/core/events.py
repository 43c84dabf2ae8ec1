"""What the core is told: the facts of programs, calls, tool calls, engines and the hosts of tools.

Every event is an immutable value, checked when it is made, so an event that exists is a legal one
(``ValueError`` names the field otherwise). Events carry no time of their own: the host passes
``now`` (seconds of one monotonic clock) beside the event. The core numbers events as it handles
them, and that number is the ``cause`` of every decision that follows.

Token counts are in tokens of the engine's tokenizer, sizes in bytes, durations in seconds.
"""

from __future__ import annotations

import math

import msgspec

PROTOCOL = 1
"""Of this vocabulary and that of decisions, as engines and SDKs of other installations speak it. One more
where what is known already changes its meaning; new events and fields do not count."""

LEAST_WEIGHT, MOST_WEIGHT = 1e-3, 1e3
MOST_PRIORITY = 9

KILLED = 128 + 9
"""Exit status of a tool that was killed, as for want of memory."""

_NAMES = frozenset({"program", "call", "tool_call", "engine", "tenant"})


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the vocabulary: refuses empty names, NaN and negative amounts."""

    def __post_init__(self) -> None:
        for value in msgspec.structs.astuple(self):
            kind = type(value)
            if kind is str:
                if not value:
                    self._check_names()
            elif (kind is int or kind is float) and not value >= 0:
                field = next(f for f in self.__struct_fields__ if getattr(self, f) is value)
                raise ValueError(f"{type(self).__name__}.{field} must be >= 0, got {value!r}")

    def _check_names(self) -> None:
        for field in self.__struct_fields__:
            if field in _NAMES and getattr(self, field) == "":
                raise ValueError(f"{type(self).__name__}.{field} must not be empty")


def _check_deadline(deadline_s: float | None, event: str) -> None:
    if deadline_s is not None and not 0 < deadline_s < math.inf:
        raise ValueError(
            f"{event}.deadline_s must be finite seconds above 0, got {deadline_s!r}; "
            "leave it out where there is no deadline"
        )


class Event(Value, frozen=True, kw_only=True, tag_field="event", tag=True):
    """Base of all events."""


class ToolCallRef(Value, frozen=True, kw_only=True):
    """A tool call that the model asked for: ``tool`` is the function's name."""

    tool_call: str
    tool: str


class ProgramOpened(Event, frozen=True, kw_only=True):
    """A program's first call is about to arrive, or its owner announced it.

    ``weight`` and ``priority``: its tenant's; tenants of a higher priority are seated first. ``host``: where
    its tools run; "", or one that is not attached, has no limits. ``deadline_s``: seconds from now within
    which it should end, if it matters. ``parent``: the program that it is a sub-agent or a fork of, if that
    is known. ``expected_calls``: how many calls it is said to make in all; 0: nobody says.
    """

    program: str
    tenant: str = "default"
    weight: float = 1.0
    host: str = ""
    deadline_s: float | None = None
    parent: str = ""
    expected_calls: int = 0
    priority: int = 0

    def __post_init__(self) -> None:
        Value.__post_init__(self)
        if self.priority > MOST_PRIORITY:
            raise ValueError(f"ProgramOpened.priority must be from 0 to {MOST_PRIORITY}, got {self.priority}")
        if not LEAST_WEIGHT <= self.weight <= MOST_WEIGHT:
            raise ValueError(
                f"ProgramOpened.weight must be from {LEAST_WEIGHT} to {MOST_WEIGHT}, got {self.weight!r}"
            )
        _check_deadline(self.deadline_s, "ProgramOpened")


class ProgramAnnotated(Event, frozen=True, kw_only=True):
    """What its owner says of a program now. ``deadline_s`` counts from now. None: says nothing new."""

    program: str
    expected_calls: int | None = None
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        Value.__post_init__(self)
        _check_deadline(self.deadline_s, "ProgramAnnotated")


class ProgramRestored(Event, frozen=True, kw_only=True):
    """What is known from before of a program that was just opened: an earlier life of the host ran it.

    It has been open for ``open_s`` seconds, and has no live call. ``shared_tokens`` of its context were held
    for others before its first call. ``asked``: tool calls of its last answer whose results did not come
    yet, with their gap keys; ``gap_key`` is what its gap is predicted by.
    """

    program: str
    open_s: float
    calls_done: int
    first_prompt_tokens: int
    context_tokens: int
    shared_tokens: int = 0
    gap_key: str = ""
    asked: tuple[ToolCallRef, ...] = ()


class CallArrived(Event, frozen=True, kw_only=True):
    """A call reached the gateway; it waits there until its program is admitted.

    ``answers`` names the tool calls whose results this call carries.
    """

    call: str
    program: str
    prompt_tokens: int
    max_output_tokens: int
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.call and self.program and self.prompt_tokens >= 0 and self.max_output_tokens >= 0):
            Value.__post_init__(self)  # which says what is wrong, and is slow


class CallStarted(Event, frozen=True, kw_only=True):
    """The engine began to compute the call; ``cached_tokens`` of its prompt were held already."""

    call: str
    cached_tokens: int

    def __post_init__(self) -> None:
        if not (self.call and self.cached_tokens >= 0):
            Value.__post_init__(self)


class FirstToken(Event, frozen=True, kw_only=True):
    """The call's first output token left the engine."""

    call: str


class CallFinished(Event, frozen=True, kw_only=True):
    """The call ended well. ``recomputed_tokens``: prefilled although the engine had held them once."""

    call: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    recomputed_tokens: int = 0
    tool_calls: tuple[ToolCallRef, ...] = ()

    def __post_init__(self) -> None:
        prompt, cached, output = self.prompt_tokens, self.cached_tokens, self.output_tokens
        if not (self.call and prompt >= 0 and cached >= 0 and output >= 0 and self.recomputed_tokens >= 0):
            Value.__post_init__(self)


class CallAborted(Event, frozen=True, kw_only=True):
    """The call ended without an answer: client gone, engine lost, or an error."""

    call: str
    reason: str


class ToolStarted(Event, frozen=True, kw_only=True):
    """A tool call began to run. ``tool`` is the function, ``command`` its class (the program that it
    runs), if known. ``expected_memory_bytes``: what its agent says that it needs at most; 0: nothing said."""

    tool_call: str
    program: str
    tool: str
    command: str = ""
    expected_memory_bytes: int = 0


class ToolProgressed(Event, frozen=True, kw_only=True):
    """Evidence from a running tool: what it used so far, where that is known, and the share done, where it
    tells: of its time, as far as that can be told from its work."""

    tool_call: str
    program: str
    cpu_s: float = 0.0
    memory_bytes: int = 0
    done_fraction: float | None = None


class ToolFinished(Event, frozen=True, kw_only=True):
    """A tool call ended. ``exit_status`` is 0-255, or 128 + signal number."""

    tool_call: str
    program: str
    exit_status: int
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int


class ProgramClosed(Event, frozen=True, kw_only=True):
    """The program will make no more calls; ``expired``: so it is assumed, since it is silent for long."""

    program: str
    expired: bool = False


class EngineAttached(Event, frozen=True, kw_only=True):
    """An engine connected (again, if it was lost): its limits. A full ``StepReport`` snapshot follows.

    ``host_tokens_per_s``: how fast KV comes back from host memory, where there is a tier of it. Without
    ``retention`` it keeps KV as it likes: it is not told what that is worth.
    """

    engine: str
    capacity_tokens: int
    block_tokens: int
    host_capacity_tokens: int = 0
    host_tokens_per_s: float = 0.0
    max_running: int = 64
    retention: bool = True

    def __post_init__(self) -> None:
        Value.__post_init__(self)
        if not self.capacity_tokens:
            raise ValueError("EngineAttached.capacity_tokens must be > 0")


class EngineLost(Event, frozen=True, kw_only=True):
    """An engine went away; all KV that it held is gone."""

    engine: str


class HostAttached(Event, frozen=True, kw_only=True):
    """A host of sandboxes: ``memory_bytes`` is what tools may use there. Again, it has a new size."""

    host: str
    memory_bytes: int

    def __post_init__(self) -> None:
        Value.__post_init__(self)
        if not self.host:
            raise ValueError("HostAttached.host must not be empty")
        if not self.memory_bytes:
            raise ValueError("HostAttached.memory_bytes must be > 0")


class HostLost(Event, frozen=True, kw_only=True):
    """A host of sandboxes went away, and with it the tools that ran there."""

    host: str


class Held(Value, frozen=True, kw_only=True):
    """KV held for one program, tokens; a shared block counts for each of its owners."""

    program: str
    device_tokens: int
    host_tokens: int = 0


class StepReport(Event, frozen=True, kw_only=True):
    """What an engine holds and did since its last report.

    ``held`` lists the programs that changed, or all of them if ``snapshot``. ``free_tokens`` counts
    blocks that hold nothing; blocks kept only as cache are ``capacity - free - in use``.
    """

    engine: str
    free_tokens: int
    evictable_tokens: int
    held: tuple[Held, ...] = ()
    snapshot: bool = False
    evicted_tokens: int = 0
    prefilled_tokens: int = 0
    decoded_tokens: int = 0
    recomputed_tokens: int = 0
    running: int = 0
    queued: int = 0
    step_s: float = 0.0
    broken_leases: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()


class PolicyEngaged(Event, frozen=True, kw_only=True):
    """Whether the policy's decisions are to be carried out from now on. If not, it only watches: every call
    is let through at once, and what it would order is said as advice. A core begins engaged."""

    engaged: bool


class Woken(Event, frozen=True, kw_only=True):
    """The time that the core asked for with ``next_wakeup`` has come."""


AnyEvent = (
    ProgramOpened
    | ProgramAnnotated
    | ProgramRestored
    | CallArrived
    | CallStarted
    | FirstToken
    | CallFinished
    | CallAborted
    | ToolStarted
    | ToolProgressed
    | ToolFinished
    | ProgramClosed
    | EngineAttached
    | EngineLost
    | HostAttached
    | HostLost
    | StepReport
    | PolicyEngaged
    | Woken
)
