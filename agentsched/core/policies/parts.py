"""A policy is made of four parts, each replaceable: admission, rank, retention, placement.

Parts read the ``State`` and speak through ``Orders``; they never change the state themselves. A part
may learn, in ``observe``, and must then depend on nothing but what it was shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from agentsched.core import events as ev
from agentsched.core.orders import Orders
from agentsched.core.state import Program, State


class Learner(Protocol):
    """What learns from events. ``subject`` is the program that the event is about, after it."""

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None: ...


class Admission(Protocol):
    """Who is foreground."""

    def review(self, state: State, orders: Orders) -> None:
        """Admit, pause or reject, after every event."""
        ...

    def next_review_s(self, state: State) -> float | None:
        """When to review again even if nothing happens (monotonic seconds)."""
        ...


class Placement(Protocol):
    """Where a program runs."""

    def candidates(self, state: State, program: Program) -> list[str]:
        """Attached engines, best first."""
        ...


class RankKey(NamedTuple):
    """Lower goes first in the engine."""

    value: float
    reason: str


class RankPart(Protocol):
    """In which order the engine takes programs."""

    def key(self, state: State, program: Program, now: float, *, preempted: bool) -> RankKey | None:
        """The program's key; None leaves the engine's own order (arrival of calls)."""
        ...


class Retention(Protocol):
    """What a program's KV is worth while it is away."""

    def terms(self, orders: Orders, engine: str) -> None:
        """A new engine: set its terms."""
        ...

    def away(self, state: State, orders: Orders, program: Program) -> None:
        """A foreground program's gap began, or something new is known about it."""
        ...

    def returned(self, state: State, orders: Orders, program: Program) -> None:
        """A foreground program's next call is on its way to the engine."""
        ...

    def paused(self, state: State, orders: Orders, program: Program, engine: str) -> None:
        """A program has lost its seat on ``engine``, where its KV is."""
        ...


class Books(Protocol):
    """What keeps accounts of its own beside the state."""

    def check_invariants(self, state: State) -> None:
        """Raises AssertionError if they disagree with the state."""
        ...


@dataclass(frozen=True)
class Policy:
    """A complete policy. Holds learned state: make a new one for each core (``make_policy``)."""

    name: str
    admission: Admission
    rank: RankPart
    retention: Retention
    placement: Placement
    learners: tuple[Learner, ...] = field(default=())
    books: tuple[Books, ...] = field(default=())
