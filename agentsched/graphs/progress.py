"""What running tools tell of their progress, as a forecast of when they end.

A tool that says "three tenths done" after six seconds would take twenty if it went on like that. How true
that is differs by how far it had come: ratios of real to extrapolated duration are kept by quarters of
the work done, and give the spread. A stated prior answers first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentsched.graphs.samples import Window, amount, share

QUARTERS = 4
LEAST_FRACTION = 0.01
"""Of what says less nothing is extrapolated: it would be hours, or nothing at all."""

FEW = 5
SAMPLES = 100
PRIOR_RATIOS = (0.7, 0.85, 0.95, 1.0, 1.05, 1.2, 1.5, 2.2)
MOST_RATIO = 20.0


class ProgressModel:
    """Learns from tools that ended, and answers for tools that run. Queries cost microseconds."""

    def __init__(self) -> None:
        self._ratios = [Window(SAMPLES) for _ in range(QUARTERS)]

    def observe(self, told: Iterable[tuple[float, float]], lasted_s: float) -> None:
        """Learn a tool that lasted so long, and had ``told`` (share done, seconds since it began).

        Raises ValueError on what cannot be, and has learned nothing of that pair then.
        """
        amount("lasted_s", lasted_s)
        for fraction, elapsed_s in told:
            if share("fraction", fraction) >= LEAST_FRACTION and amount("elapsed_s", elapsed_s) > 0:
                ratio = lasted_s * fraction / elapsed_s
                self._ratios[quarter(fraction)].add(min(MOST_RATIO, ratio))

    def dump(self) -> list[list[float]]:
        """All that was learned."""
        return [ratios.dump() for ratios in self._ratios]

    def load(self, known: Sequence[Sequence[float]]) -> None:
        """Know that and no more. Raises ValueError on what was never dumped."""
        self._ratios = [
            Window.loaded(SAMPLES, ratios) for _, ratios in zip(range(QUARTERS), known, strict=True)
        ]

    def durations_s(self, fraction: float, elapsed_s: float) -> list[float]:
        """``len(PRIOR_RATIOS)`` ascending samples of equal weight that stand for how long the tool lasts in
        all, each at least ``elapsed_s``; empty if so little is done that it says nothing."""
        amount("elapsed_s", elapsed_s)
        if share("fraction", fraction) < LEAST_FRACTION:
            return []
        known = self._ratios[quarter(fraction)].ordered
        count = len(PRIOR_RATIOS)
        ratios = (
            [known[(2 * i + 1) * len(known) // (2 * count)] for i in range(count)]
            if len(known) >= FEW
            else PRIOR_RATIOS
        )
        return [max(elapsed_s, elapsed_s / fraction * ratio) for ratio in ratios]


def quarter(fraction: float) -> int:
    """Which quarter of the work is being done."""
    return min(QUARTERS - 1, int(fraction * QUARTERS))
