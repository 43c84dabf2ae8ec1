"""Whether a program that has been silent for a while comes back at all.

A gap's duration is learned from gaps that ended, so it says when a program returns, if it does. Whether it
does depends on what its last answer was: who asked for a tool returns with the result unless it broke down;
who did not is mostly done. Both shares are learned by counting, and silence counts by Bayes' rule:

    P(returns | silent so long) = (1 - over) x survival / ((1 - over) x survival + over)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from agentsched.graphs.samples import share

PRIOR = {True: (49.0, 1.0), False: (1.0, 1.0)}
"""(returns, ends) after an answer that asked for a tool, and after one that did not."""

MEMORY = 1000.0
"""Outcomes after which old ones have lost half of their say."""


class ReturnModel:
    """Counts how gaps ended. Queries take constant time."""

    def __init__(self) -> None:
        self._returns = {True: 0.0, False: 0.0}
        self._ends = {True: 0.0, False: 0.0}

    def dump(self) -> list[list[float]]:
        """Returns and ends, after answers that asked for no tool and after those that did."""
        return [[self._returns[asked], self._ends[asked]] for asked in (False, True)]

    def load(self, known: Sequence[Sequence[float]]) -> None:
        """Know that and no more; of nothing, nothing. Raises ValueError on what was never dumped."""
        for asked, counts in zip((False, True), known or [(0.0, 0.0)] * 2, strict=True):
            returns, ends = counts
            if not (0 <= returns < inf and 0 <= ends < inf):
                raise ValueError(f"outcomes are counted from 0 on, got {counts}")
            self._returns[asked], self._ends[asked] = returns, ends

    def observe(self, asked: bool, *, returned: bool) -> None:
        """A gap is over: the program made its next call, or ended. ``asked``: a tool's result was due."""
        (self._returns if returned else self._ends)[asked] += 1.0
        if self._returns[asked] + self._ends[asked] > MEMORY:
            self._returns[asked] /= 2
            self._ends[asked] /= 2

    def correct(self, asked: bool) -> None:
        """What was taken for an end was none: the program came back."""
        self._ends[asked] = max(0.0, self._ends[asked] - 1.0)
        self.observe(asked, returned=True)

    def probability(self, asked: bool, survival: float) -> float:
        """That it returns, where ``survival`` is the share of gaps that last longer than its silence.
        Raises ValueError unless that is a share."""
        share("survival", survival)
        returns, ends = PRIOR[asked]
        returns, ends = returns + self._returns[asked], ends + self._ends[asked]
        alive = returns * survival
        return alive / (alive + ends)
