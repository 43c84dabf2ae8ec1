"""What the core decides: standing orders that hosts and engines carry out alone.

Every decision names its ``cause`` (the number of the event that led to it), and carries the core's
``epoch`` and a sequence number ``seq``: carrying one out twice changes nothing, and an engine
ignores what is older than what it has. ``reason`` says why, in plain words, for people.
"""

from __future__ import annotations

from itertools import pairwise

from agentsched.core.events import Value


class Decision(Value, frozen=True, kw_only=True, tag_field="decision", tag=True):
    """Base of all decisions."""

    cause: int
    epoch: int
    seq: int
    reason: str = ""
    advice: bool = False
    """What the policy would do, were it engaged. Carried out by nobody."""


class Admit(Decision, frozen=True, kw_only=True):
    """Let the program's calls through to ``engine`` (foreground). Carried out by the gateway."""

    program: str
    engine: str


class Pass(Decision, frozen=True, kw_only=True):
    """Let the program's waiting calls through to ``engine`` although it has no seat: the policy only watches.
    Carried out by the gateway."""

    program: str
    engine: str


class Pause(Decision, frozen=True, kw_only=True):
    """Hold the program's next calls at the gateway, and one whose arrival led to this. A call already in the
    engine goes on."""

    program: str


class Reject(Decision, frozen=True, kw_only=True):
    """Turn a waiting call away: the client is told to come back after ``retry_after_s``."""

    call: str
    program: str
    retry_after_s: float


class Rank(Decision, frozen=True, kw_only=True):
    """Order inside the engine: lower keys are batched first and preempted last."""

    program: str
    engine: str
    key: float


YIELDS = 1e-6
"""KV worth no more than this yields to new calls, least worth first; KV worth more makes them wait."""


class Worth(Value, frozen=True, kw_only=True):
    """One step of a step function of time: ``value`` holds until ``until_s`` (monotonic seconds)."""

    until_s: float
    value: float


class Segment(Value, frozen=True, kw_only=True):
    """Value of the tokens ``[start_tokens, end_tokens)`` of a program's context, on device and host.

    Each list has at most 8 steps with rising ``until_s``; past the last one the value is 0: that is
    the TTL. Values are compared within one engine only; the unit is the policy's own.
    """

    start_tokens: int
    end_tokens: int
    device: tuple[Worth, ...]
    host: tuple[Worth, ...] = ()

    def __post_init__(self) -> None:
        Value.__post_init__(self)
        if self.end_tokens <= self.start_tokens:
            raise ValueError(f"Segment is empty: [{self.start_tokens}, {self.end_tokens})")
        for steps in (self.device, self.host):
            if len(steps) > 8:
                raise ValueError(f"Segment has {len(steps)} steps, at most 8 are allowed")
            if any(b.until_s <= a.until_s for a, b in pairwise(steps)):
                raise ValueError("Segment steps must have rising until_s")


class Retain(Decision, frozen=True, kw_only=True):
    """Keep the program's KV by value; replaces the program's earlier order.

    Segments are disjoint, ordered, and the head is worth at least as much as the tail. The order
    ends at ``lease_until_s`` even if values last longer.
    """

    program: str
    engine: str
    segments: tuple[Segment, ...]
    lease_until_s: float

    def __post_init__(self) -> None:
        Value.__post_init__(self)
        if any(b.start_tokens < a.end_tokens for a, b in pairwise(self.segments)):
            raise ValueError(f"Retain({self.program}): segments must be disjoint and ordered")


class Prefetch(Decision, frozen=True, kw_only=True):
    """Bring the program's KV from host memory to the device by ``by_s``."""

    program: str
    engine: str
    by_s: float


class Release(Decision, frozen=True, kw_only=True):
    """Forget the program's orders; its KV is worth nothing now (it stays until space is needed)."""

    program: str
    engine: str


class EngineTerms(Decision, frozen=True, kw_only=True):
    """Terms for one engine: up to which worth KV yields to new calls on the device, below which it is not
    kept in host memory, and batch limits (None: the engine's own)."""

    engine: str
    free_floor_tokens: int = 0
    device_price: float = YIELDS
    host_price: float = 0.0
    chunk_tokens: int | None = None
    max_running: int | None = None


EngineOrder = Rank | Retain | Prefetch | Release | EngineTerms
"""The decisions that an engine carries out."""
GateOrder = Admit | Pass | Pause | Reject
"""The decisions that the gateway carries out."""
AnyDecision = GateOrder | EngineOrder
