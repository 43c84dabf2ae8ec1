"""Retention by an index over the gap that is left: what a second of holding saves.

Holding n tokens through a gap costs n x time; it saves the prefill of n tokens if the program comes
back while they are held. ``foresight.gap_index`` is the best rate at which holding can pay. It is
sent as a step function of time, so the engine lets KV go on its own, lowest index first, when the
tool takes longer than such tools do.

A paused program will come back, but nobody knows when: its KV yields to whoever has a seat, and is worth
more than that of programs that have ended, which the engine would not tell apart by itself. In host memory
the same values hold; what has ended is not kept there at all.

What lies in host memory is fetched ahead on evidence only: the next call is queued, or a running tool tells
that it is about to end. A guess by the curve would bring KV up to lie there instead of here.
"""

from __future__ import annotations

from agentsched.core.decisions import YIELDS, Worth
from agentsched.core.foresight import Foresight, GapCurve, told_ends_s
from agentsched.core.orders import Orders
from agentsched.core.state import Program, State

OVERTIME = 2.0
MIN_TTL_S = 10.0
MAX_STEPS = 7
RETURNED_VALUE = 1e6
RETURNED_LEASE_S = 600.0
PAUSED_LEASE_S = 3600.0
EARLY = 4
"""KV is fetched for a program that one time in so many is back by then: what comes too early takes no
more than room that yields, and what comes too late is waited for."""

AHEAD = 2.0
"""KV is fetched so many times as early as its way up takes: other KV may be on the link."""


def worth_of_gap(curve: GapCurve, gap_since_s: float, now: float) -> tuple[Worth, ...]:
    """The index as a step function of time from ``now`` on; past the last step it is 0."""
    elapsed_s = now - gap_since_s
    ends_s = [begin_s for begin_s, _ in curve[1:]]
    ends_s.append(max(OVERTIME * curve[-1][0], elapsed_s + MIN_TTL_S))
    steps = [(end_s, index) for end_s, (_, index) in zip(ends_s, curve, strict=True) if end_s > elapsed_s]
    while len(steps) > MAX_STEPS:
        # The two neighbours most alike become one, worth what the later is: never too much.
        at = min(range(len(steps) - 1), key=lambda i: abs(steps[i][1] - steps[i + 1][1]))
        del steps[at]
    return tuple(Worth(until_s=gap_since_s + end_s, value=index) for end_s, index in steps)


def _fetch(state: State, orders: Orders, program: Program, back_s: float, reason: str) -> None:
    """Have what lies in host memory brought up, if it is time for a program that is back at ``back_s``."""
    if program.seat is None or program.seat != program.home or not program.host_held_tokens:
        return
    way_s = AHEAD * program.host_held_tokens / state.engines[program.seat].restore_tokens_per_s
    if back_s <= orders.now + way_s:
        orders.prefetch(program, program.seat, orders.now + way_s, reason)


class GapIndex:
    """Order the KV of every seated program by the index of its gap."""

    def __init__(self, foresight: Foresight) -> None:
        self._foresight = foresight

    def terms(self, orders: Orders, engine: str) -> None:
        orders.terms(engine, "KV of programs that have ended has no place in host memory", host_price=YIELDS)

    def away(self, state: State, orders: Orders, program: Program) -> None:
        if program.seat is None or program.gap_since_s is None:
            return
        steps = worth_of_gap(self._foresight.gap(state, program), program.gap_since_s, orders.now)
        reason = f"away with {program.gap_key or 'no tool'}: index {steps[0].value:.2f}/s now"
        orders.retain(program, program.seat, steps, steps[-1].until_s, reason, host=steps)
        if program.host_held_tokens and (ends_s := told_ends_s(state, program)):
            back_s = ends_s[len(ends_s) // EARLY]
            told = f"its tool tells that it may end in {back_s - orders.now:.1f} s"
            _fetch(state, orders, program, back_s, told)

    def returned(self, state: State, orders: Orders, program: Program) -> None:
        """Its next call is queued: nothing is worth more than what it is about to use."""
        if program.seat is None or not program.context_tokens:
            return
        until_s = orders.now + RETURNED_LEASE_S
        worth = Worth(until_s=until_s, value=RETURNED_VALUE)
        reason = "its next call is queued"
        orders.retain(program, program.seat, (worth,), until_s, reason, host=(worth,))
        _fetch(state, orders, program, orders.now, reason)

    def paused(self, state: State, orders: Orders, program: Program, engine: str) -> None:
        until_s = orders.now + PAUSED_LEASE_S
        worth = Worth(until_s=until_s, value=YIELDS)
        orders.retain(program, engine, (worth,), until_s, "it is paused, and will be back", host=(worth,))
