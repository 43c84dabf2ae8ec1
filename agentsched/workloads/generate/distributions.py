"""Random amounts that meet published statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random


def lognormal(rng: Random, mean: float, deviation: float) -> float:
    """A log-normal amount with this mean and standard deviation."""
    variance = math.log1p((deviation / mean) ** 2)
    return rng.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))


def gamma(rng: Random, mean: float, shape: float) -> float:
    """A gamma amount with this mean; its coefficient of variation is ``shape ** -0.5``."""
    return rng.gammavariate(shape, mean / shape)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A distribution by its quantile function: (probability, amount) knots, log-linear between them.

    It meets every knot exactly; the first must be at probability 0 and the last at 1.
    """

    knots: tuple[tuple[float, float], ...]

    @classmethod
    def from_tail(cls, p50: float, p95: float, p99: float) -> Quantiles:
        """Through three published quantiles. The ends are a choice: nothing is shorter than a quarter of
        the median, or longer than twice P99, where time limits would cut."""
        return cls(((0.0, p50 / 4), (0.5, p50), (0.95, p95), (0.99, p99), (1.0, 2 * p99)))

    def __post_init__(self) -> None:
        probabilities = [probability for probability, _ in self.knots]
        if probabilities[0] != 0 or probabilities[-1] != 1 or not _rising(probabilities):
            raise ValueError(f"quantiles must rise from probability 0 to 1, got {probabilities}")
        if self.knots[0][1] <= 0 or not _rising([amount for _, amount in self.knots]):
            raise ValueError(f"quantiles must be positive and rise, got {self.knots}")

    def at(self, probability: float) -> float:
        for (low, least), (high, most) in pairwise(self.knots):
            if probability <= high:
                return float(least * (most / least) ** ((probability - low) / (high - low)))
        return self.knots[-1][1]

    def draw(self, rng: Random) -> float:
        return self.at(rng.random())

    def mean(self) -> float:
        """Exact: between two knots an amount is log-uniform."""
        pairs = pairwise(self.knots)
        return sum(
            (high - low) * (most - least) / math.log(most / least) for (low, least), (high, most) in pairs
        )


def _rising(values: Sequence[float]) -> bool:
    return all(before < after for before, after in pairwise(values))


def whole(rng: Random, mean: float, deviation: float, least: int) -> int:
    """A whole number near a normal one of this mean and deviation, never below ``least``."""
    return max(least, round(rng.gauss(mean, deviation)))
