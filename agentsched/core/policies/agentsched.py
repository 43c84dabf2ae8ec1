"""Ours: seats by predicted peak, everything by turn of the program, retention by the index of the gap."""

from __future__ import annotations

from dataclasses import replace

from agentsched.core.foresight import Foresight, Known, Learned, Oracle
from agentsched.core.policies.fcfs_lru import EngineOrder, Recency
from agentsched.core.policies.gap_index import GapIndex
from agentsched.core.policies.mechanisms import Mechanisms
from agentsched.core.policies.parts import Policy, RankPart, Retention
from agentsched.core.policies.seats import Seats
from agentsched.core.policies.turns import Turns
from agentsched.core.trust import Trusted


def agentsched() -> Policy:
    """A new ``agentsched`` policy."""
    return _policy("agentsched", Learned())


def clairvoyant(oracle: Oracle) -> Policy:
    """The same, knowing every program's future: the yardstick of what prediction could gain."""
    return _policy("clairvoyant", Known(oracle))


def _policy(
    name: str,
    foresight: Foresight,
    *,
    gate: Mechanisms | None = None,
    retention: Retention | None = None,
    rank: RankPart | None = None,
) -> Policy:
    turns, trusted = Turns(), Trusted(foresight)
    seats = Seats(trusted, turns, gate)
    return Policy(
        name=name,
        admission=seats,
        rank=rank or turns,
        retention=retention or GapIndex(trusted),
        placement=seats,
        learners=(trusted, turns, seats),
        books=(seats,),
    )


def without(name: str, mechanism: str) -> Policy:
    """The same with one mechanism switched off."""
    match mechanism:
        case "retention":
            return _policy(name, Learned(), retention=Recency())
        case "order":
            return _policy(name, Learned(), rank=EngineOrder())
        case _:
            return _policy(name, Learned(), gate=replace(Mechanisms(), **{mechanism: False}))
