"""Ours: seats by predicted peak, engine order by program, retention by the index of the gap."""

from __future__ import annotations

from agentsched.core.foresight import Foresight, Known, Learned, Oracle
from agentsched.core.policies.fcfs_lru import Affinity
from agentsched.core.policies.gap_index import GapIndex
from agentsched.core.policies.parts import Policy, RankKey
from agentsched.core.policies.seats import Seats
from agentsched.core.state import Program, State


class ByArrival:
    """Program-level FCFS: the program that came first goes first, in every one of its calls."""

    def key(self, state: State, program: Program, now: float, *, preempted: bool) -> RankKey | None:
        return RankKey(program.order, "by arrival of the program")


def agentsched() -> Policy:
    """A new ``agentsched`` policy."""
    return _policy("agentsched", Learned())


def clairvoyant(oracle: Oracle) -> Policy:
    """The same, knowing every program's future: the yardstick of what prediction could gain."""
    return _policy("clairvoyant", Known(oracle))


def _policy(name: str, foresight: Foresight) -> Policy:
    seats = Seats(foresight)
    return Policy(
        name=name,
        admission=seats,
        rank=ByArrival(),
        retention=GapIndex(foresight),
        placement=Affinity(),
        learners=(seats,),
    )
