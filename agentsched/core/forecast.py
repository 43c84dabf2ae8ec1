"""How much KV a set of programs will need at most, if each goes on growing until it ends.

After Past-Future (admission by the predicted peak of memory over time, not by today's use): every
program grows from call to call and frees everything at its end, so the need rises until somebody
ends, falls, and rises again. The peak of that curve, not the sum of final contexts, is what has to
fit. Time is counted in calls: all programs are taken to make calls at the same pace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Forecast(NamedTuple):
    """One program: tokens it holds now, not counting what it shares; tokens that each further call adds;
    calls it has left."""

    now_tokens: int
    growth_tokens: float
    calls_left: float


def predicted_peak(forecasts: Iterable[Forecast]) -> float:
    """The largest sum of contexts at any time from now on, tokens.

    The sum only grows between endings, so its maxima lie just before one: n candidates, each a
    suffix of the programs in order of their ending.
    """
    return peak_by_ending(sorted(forecasts, key=lambda f: -f.calls_left))


def peak_by_ending(forecasts: Iterable[Forecast]) -> float:
    """The same of forecasts in order of their ending, who ends last first."""
    now_tokens = growth_tokens = peak = 0.0
    for ending in forecasts:
        now_tokens += ending.now_tokens
        growth_tokens += ending.growth_tokens
        here = now_tokens + growth_tokens * ending.calls_left
        if here > peak:
            peak = here
    return peak
