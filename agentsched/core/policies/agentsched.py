"""Ours: seats by predicted peak, everything by turn of the program, retention by the index of the gap."""

from __future__ import annotations

from collections.abc import Callable

from agentsched.core.foresight import Foresight, Known, Learned, Oracle
from agentsched.core.policies.fcfs_lru import Affinity, EngineOrder, Recency
from agentsched.core.policies.gap_index import GapIndex
from agentsched.core.policies.parts import Policy, RankPart, Retention
from agentsched.core.policies.seats import Mechanisms, Seats
from agentsched.core.policies.turns import Turns


def agentsched() -> Policy:
    """A new ``agentsched`` policy."""
    return _policy("agentsched", Learned())


def clairvoyant(oracle: Oracle) -> Policy:
    """The same, knowing every program's future: the yardstick of what prediction could gain."""
    return _policy("clairvoyant", Known(oracle))


ABLATIONS: dict[str, Callable[[], Policy]] = {
    "agentsched-no-peak": lambda: _policy("agentsched-no-peak", Learned(), gate=Mechanisms(peak=False)),
    "agentsched-no-overcommit": lambda: _policy(
        "agentsched-no-overcommit", Learned(), gate=Mechanisms(overcommit=False)
    ),
    "agentsched-no-leaving": lambda: _policy(
        "agentsched-no-leaving", Learned(), gate=Mechanisms(leaving=False)
    ),
    "agentsched-no-relief": lambda: _policy("agentsched-no-relief", Learned(), gate=Mechanisms(relief=False)),
    "agentsched-no-retention": lambda: _policy("agentsched-no-retention", Learned(), retention=Recency()),
    "agentsched-no-order": lambda: _policy("agentsched-no-order", Learned(), rank=EngineOrder()),
}
"""Ours with one mechanism switched off, by name."""


def _policy(
    name: str,
    foresight: Foresight,
    *,
    gate: Mechanisms | None = None,
    retention: Retention | None = None,
    rank: RankPart | None = None,
) -> Policy:
    turns = Turns()
    seats = Seats(foresight, turns, gate)
    return Policy(
        name=name,
        admission=seats,
        rank=rank or turns,
        retention=retention or GapIndex(foresight),
        placement=Affinity(),
        learners=(turns, seats),
    )
