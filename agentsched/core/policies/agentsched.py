"""Ours: seats by predicted peak, engine order by program, retention by the index of the gap."""

from __future__ import annotations

from agentsched.core.policies.fcfs_lru import Affinity
from agentsched.core.policies.gap_index import GapIndex
from agentsched.core.policies.parts import Policy, RankKey
from agentsched.core.policies.peak import Overcommit, PeakAdmission
from agentsched.core.state import Program, State


class ByArrival:
    """Program-level FCFS: the program that came first goes first, in every one of its calls."""

    def key(self, state: State, program: Program, now: float, *, preempted: bool) -> RankKey | None:
        return RankKey(program.order, "by arrival of the program")


def agentsched() -> Policy:
    """A new ``agentsched`` policy."""
    placement = Affinity()
    overcommit = Overcommit()
    return Policy(
        name="agentsched",
        admission=PeakAdmission(placement, overcommit),
        rank=ByArrival(),
        retention=GapIndex(),
        placement=placement,
        learners=(overcommit,),
    )
