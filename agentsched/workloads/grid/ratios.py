"""Ratios of one policy to another, paired by seed.

Runs of one seed play the same programs in the same order. So the ratio is taken within each seed, its
logarithm averaged over seeds, and the 95 % interval is Student's t on those logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

import msgspec
from scipy import stats

CONFIDENCE = 0.95


class Ratio(msgspec.Struct, frozen=True, array_like=True):
    """``low`` and ``high`` bound it with 95 % confidence; None with one seed only."""

    mean: float
    low: float | None = None
    high: float | None = None


def ratio(ours: Mapping[int, float], base: Mapping[int, float], floor: float = 0.0) -> Ratio | None:
    """Values by seed; below ``floor`` they count as ``floor``. None if nothing can be divided."""
    pairs = [(max(ours[seed], floor), max(base[seed], floor)) for seed in ours if seed in base]
    if not pairs or any(mine <= 0 or theirs <= 0 for mine, theirs in pairs):
        return None
    logs = [math.log(mine / theirs) for mine, theirs in pairs]
    mean = fmean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean))
    error = float(stats.sem(logs))
    reach = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1))
    return Ratio(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))
