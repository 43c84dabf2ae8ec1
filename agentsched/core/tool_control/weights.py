"""What a program counts beside others: by its tenant, by what its agent says, and by the KV that waits.

KV tokens that an engine keeps while a tool runs are memory of the dearest kind, doing nothing: so a tool
that much KV waits for should end first. Only what is known counts: a program without an engine that tells
is taken to have as much as others have on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

LEAST_FACTOR, MOST_FACTOR = 0.5, 4.0
"""KV alone moves a weight no further than this."""

MOST_DOUBLINGS = 4
"""A priority doubles a CPU weight, up to so often: the rest must not starve."""

USUAL = 100


def kv_factors(tokens: dict[str, int | None]) -> dict[str, float]:
    """For each program: its waiting KV over the mean of those that are known, bounded."""
    known = [count for count in tokens.values() if count is not None]
    mean = sum(known) / len(known) if known else 0.0
    return {
        program: 1.0 if count is None or not mean else min(MOST_FACTOR, max(LEAST_FACTOR, count / mean))
        for program, count in tokens.items()
    }


def cpu_weight(weight: float, priority: int, factor: float, intents: Iterable[int]) -> int:
    """1 to 10000. ``intents``: CPU weights that the program's running calls asked for."""
    asked = max(intents, default=USUAL) / USUAL
    value = USUAL * weight * 2.0 ** min(priority, MOST_DOUBLINGS) * factor * asked
    return max(1, min(10_000, round(value)))


def rank(weight: float, factor: float) -> int:
    """Place in line for memory within one priority: whole doublings, so that small differences and slow
    changes do not reorder calls that run."""
    return round(math.log2(weight * factor))
