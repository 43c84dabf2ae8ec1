"""Retention by an index over the gap that is left: what a second of holding saves.

Holding n tokens through a gap costs n x time; it saves the prefill of n tokens if the program comes
back while they are held. For a gap that has lasted e seconds the index is

    max over tau of  P(gap <= tau | gap > e) / E[min(gap, tau) - e | gap > e]      (1 / s)

over the empirical distribution of the tool's gaps: the best rate of return that any further holding
time offers. It is computed at the distribution's own quantiles and sent as a step function of time,
so the engine lets KV go on its own, lowest index first, when the tool takes longer than such tools do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from agentsched.core.decisions import Worth
from agentsched.core.orders import Orders
from agentsched.core.state import Program, State

QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.97)
OVERTIME = 2.0
MIN_TTL_S = 10.0
RETURNED_VALUE = 1e6
RETURNED_LEASE_S = 600.0


def gap_index(samples: Sequence[float], elapsed_s: float) -> float:
    """The index above, 1/s, for ascending ``samples`` (seconds), given the gap lasted ``elapsed_s``.

    Past all samples the gap is taken to last as long again as it has (Pareto tail of index 2).
    """
    left = [gap - elapsed_s for gap in samples if gap > elapsed_s]
    if not left:
        return 1.0 / max(elapsed_s, 1e-3)
    count = len(left)
    sums = accumulate(left)
    return max(
        returned / (held_s + (count - returned) * tau_s)
        for returned, (held_s, tau_s) in enumerate(zip(sums, left, strict=True), 1)
    )


def worth_of_gap(samples: Sequence[float], gap_since_s: float, now: float) -> tuple[Worth, ...]:
    """The index as a step function of time from ``now`` on: at most 7 steps, then 0."""
    elapsed_s = max(0.0, now - gap_since_s)
    marks = sorted({samples[min(len(samples) - 1, int(q * len(samples)))] for q in QUANTILES})
    bounds = [mark for mark in [*marks, samples[-1]] if mark > elapsed_s + 1e-3]
    bounds.append(max(OVERTIME * samples[-1], elapsed_s + MIN_TTL_S, *bounds))
    steps: list[Worth] = []
    begin_s = elapsed_s
    for end_s in sorted(set(bounds)):
        steps.append(Worth(until_s=gap_since_s + end_s, value=gap_index(samples, begin_s)))
        begin_s = end_s
    return tuple(steps)


class GapIndex:
    """Order the KV of every seated program by the index of its gap."""

    def terms(self, orders: Orders, engine: str) -> None:
        return None

    def away(self, state: State, orders: Orders, program: Program) -> None:
        if program.seat is None or program.gap_since_s is None:
            return
        steps = worth_of_gap(state.gaps.samples(program.gap_key), program.gap_since_s, orders.now)
        reason = f"away with {program.gap_key or 'no tool'}: index {steps[0].value:.2f}/s now"
        orders.retain(program, program.seat, steps, steps[-1].until_s, reason)

    def returned(self, state: State, orders: Orders, program: Program) -> None:
        """Its next call is queued: nothing is worth more than what it is about to use."""
        if program.seat is None or not program.context_tokens:
            return
        until_s = orders.now + RETURNED_LEASE_S
        worth = Worth(until_s=until_s, value=RETURNED_VALUE)
        orders.retain(program, program.seat, (worth,), until_s, "its next call is queued")
