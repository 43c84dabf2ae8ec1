"""FCFS + LRU: what vLLM and SGLang do with no further knowledge. The baseline of every comparison.

Every program is let in at once; the engine takes calls in order of arrival, keeps KV by recency
alone, and requests of one program go to the same engine (session affinity).
"""

from __future__ import annotations

from agentsched.core.orders import Orders
from agentsched.core.policies.parts import Placement, Policy, RankKey
from agentsched.core.state import Program, State


class AdmitAll:
    """No gate: whoever comes is let through."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def review(self, state: State, orders: Orders) -> None:
        if not state.queue:
            return
        for program in state.waiting():
            for engine in self._placement.candidates(state, program)[:1]:
                orders.admit(program, engine, "no gate: every program is let in")

    def next_review_s(self, state: State) -> float | None:
        return None


class Affinity:
    """The engine that computed the program last, else the one with the fewest programs."""

    def candidates(self, state: State, program: Program) -> list[str]:
        seats = state.seats
        return sorted(seats, key=lambda name: (name != program.home, len(seats[name]), name))


class EngineOrder:
    """The engine's own order: arrival of calls."""

    def key(self, state: State, program: Program, now: float, *, preempted: bool) -> RankKey | None:
        return None


class Recency:
    """The engine's own eviction: least recently used first."""

    def terms(self, orders: Orders, engine: str) -> None:
        return None

    def away(self, state: State, orders: Orders, program: Program) -> None:
        return None

    def returned(self, state: State, orders: Orders, program: Program) -> None:
        return None

    def paused(self, state: State, orders: Orders, program: Program, engine: str) -> None:
        orders.release(program, engine, "it is paused")


def fcfs_lru() -> Policy:
    """A new ``fcfs-lru`` policy."""
    placement = Affinity()
    return Policy(
        name="fcfs-lru",
        admission=AdmitAll(placement),
        rank=EngineOrder(),
        retention=Recency(),
        placement=placement,
    )
