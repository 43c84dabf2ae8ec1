"""Foresight of gaps is believed as long as it serves better than knowing nothing of whose gap it is.

A curve that is wrong does harm: KV is held that nobody comes for, and let go that is needed at once. So
each gap that ends is a test. Holding KV through a gap is renting skis: at a price ``p`` a second, against one
recomputation, whoever leaves at ``L`` has paid

    p x min(gap, L) + (1 if gap > L else 0)

for a gap of that length. What the foresight's curve came to is held against what the *plain* curve did, which
knows only how long gaps last in general. Where foresight costs more, the plain curve is taken, until
foresight would have cost less again.
"""

from __future__ import annotations

from typing import NamedTuple

from agentsched.core import events as ev
from agentsched.core.forecast import Forecast
from agentsched.core.foresight import Foresight, GapCurve, Learned, leaves_at_s
from agentsched.core.state import Program, State

PRICES_PER_S = (1.0, 0.1, 0.01)
"""Recomputations that a second of holding costs: where quick tools, builds and people are waited for."""

MOST_COST = 10.0
"""Of one gap at one price: a single gap of an hour is not to outweigh a hundred others."""

MARGIN = 0.1
"""By so much may foresight cost more than the plain curve: within that they are alike."""

MEMORY_GAPS = 100
"""Gaps after which what they came to has faded to 1 / e."""

BENEFIT = 10.0
"""Cost, in recomputations, that nobody is blamed for: a few gaps prove nothing."""


class _Curves(NamedTuple):
    """What was said of one gap."""

    since_s: float
    foreseen: GapCurve
    plain: GapCurve


def holding_cost(curve: GapCurve, gap_s: float) -> float:
    """Of a gap of that length to who holds KV by the curve, in recomputations, summed over prices."""
    cost = 0.0
    for price in PRICES_PER_S:
        left_s = leaves_at_s(curve, price)
        cost += min(MOST_COST, price * min(gap_s, left_s) + (gap_s > left_s))
    return cost


class Trusted:
    """Another's foresight, or the plain curve where that serves better. Learns from events."""

    def __init__(self, foresight: Foresight) -> None:
        self._foresight = foresight
        self._plain = Learned()
        self._said: dict[str, _Curves] = {}
        self._more, self._plain_cost = 0.0, BENEFIT

    @property
    def believed(self) -> bool:
        """Whether foresight costs no more than the plain curve does, as far as is known."""
        return self._more <= MARGIN * self._plain_cost

    def forecast(self, state: State, program: Program) -> Forecast:
        return self._foresight.forecast(state, program)

    def gap(self, state: State, program: Program) -> GapCurve:
        curve, plain = self._foresight.gap(state, program), self._plain.curve(state, None)
        if program.gap_since_s is not None:
            self._said[program.name] = _Curves(program.gap_since_s, curve, plain)
        return curve if self.believed else plain

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        if subject is None:
            return
        match event:
            case ev.CallArrived():
                said = self._said.pop(subject.name, None)
                if said is not None:
                    self._judge(said, now - said.since_s)
            case ev.ProgramClosed():
                self._said.pop(subject.name, None)
            case _:
                pass

    def _judge(self, said: _Curves, gap_s: float) -> None:
        plain = holding_cost(said.plain, gap_s)
        more = holding_cost(said.foreseen, gap_s) - plain
        self._more += more - self._more / MEMORY_GAPS
        self._plain_cost += plain + (BENEFIT - self._plain_cost) / MEMORY_GAPS
