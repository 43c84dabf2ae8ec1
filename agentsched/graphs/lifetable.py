"""Life tables: how far programs get, learned from those that ended and from those that still live.

Programs that end early are known early, so whatever learns from ended programs alone believes, while
many run at once, that all are short: with 24 recorded agents at once it expected a sixth to a third
of the calls that were to come, until dozens had ended. A life table counts, for each stretch of the
way (a *bucket*), how many left it by going on and how many by ending; one that is still inside counts
for none. The share that ended is the bucket's hazard, and hazards multiply up to any question about
what lies ahead, without that bias (a period life table, as actuaries keep them).

Counts are kept for each class of programs and for all together. A class is answered from its own
counts, those of near classes, and a little of all. Where nobody has got yet, the prior hazard answers
as it is: scaled to the hazards before it, it promised ten times what came. Old counts fade.

What is observed is applied in batches, an eighth of what is known at a time, so that a compiled table
serves many questions, and the answers depend on what was observed alone, never on when somebody asked.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

LEAN = 0.5
"""Entries into a bucket that the prior hazard is worth there."""

ALOOF = 0.03
"""What the farthest programs count, to 1 for those of the same class: the back-off to all together."""

KERNEL = tuple(
    (step * side, (1.0 - ALOOF) * nearness)
    for step, nearness in enumerate((1.0, 0.77, 0.36, 0.1, 0.017))  # a normal curve
    for side in ((1, -1) if step else (1,))
)
"""(classes away, what such a class counts)."""

MEMORY = 200
"""Endings after which counts have faded to 1 / e."""

BATCH_MOVES = 1024
"""At most so many observations wait to be applied."""


class Move(NamedTuple):
    """A program of class ``size`` went from bucket ``start`` on to ``end``, and ended there or not."""

    size: int
    start: int
    end: int
    ended: bool


class Table(msgspec.Struct, frozen=True):
    """What a life table knows, as a value: (left, ended) of all and by class, faded by ``weight``."""

    pooled: tuple[list[float], list[float]]
    classes: dict[int, tuple[list[float], list[float]]]
    pending: list[Move]
    weight: float
    applied: int
    endings: int


class Counts:
    """Entries that left a bucket, and endings in it."""

    __slots__ = ("ended", "left")

    def __init__(self, buckets: int) -> None:
        self.left = [0.0] * buckets
        self.ended = [0.0] * buckets

    def dump(self) -> tuple[list[float], list[float]]:
        return (list(self.left), list(self.ended))

    @classmethod
    def loaded(cls, buckets: int, known: tuple[list[float], list[float]]) -> Counts:
        """Raises ValueError where the buckets were other ones."""
        if any(len(counts) != buckets for counts in known):
            raise ValueError(f"a life table here has {buckets} buckets")
        counts = cls(buckets)
        counts.left, counts.ended = list(known[0]), list(known[1])
        return counts

    def add(self, move: Move, weight: float) -> None:
        for bucket in range(move.start, move.end + move.ended):
            self.left[bucket] += weight
        if move.ended:
            self.ended[move.end] += weight


class Ahead:
    """What lies ahead, for one class: compiled, for any position in a few steps."""

    __slots__ = ("_edges", "_hazards", "_mean", "_overtime", "_spreads", "_survival")

    SPREADS = 512

    def __init__(self, edges: Sequence[float], hazards: list[float], overtime: float) -> None:
        self._edges, self._hazards, self._overtime = edges, hazards, overtime
        survival = [1.0]
        for hazard in hazards:
            survival.append(survival[-1] * (1.0 - hazard))
        self._survival = survival
        self._spreads: dict[float, tuple[float, ...]] = {}
        # mean end of those that reach each edge, from the last one down
        mean = edges[-1] * (1.0 + overtime)
        means = [mean]
        for bucket in range(len(hazards) - 1, -1, -1):
            middle = _middle(edges[bucket], edges[bucket + 1])
            mean = hazards[bucket] * middle + (1.0 - hazards[bucket]) * mean
            means.append(mean)
        self._mean = means[::-1]

    def expected_end(self, position: float) -> float:
        """E[end | end > position]."""
        bucket = bisect_right(self._edges, position) - 1
        if bucket >= len(self._hazards):
            return position * (1.0 + self._overtime)
        here, upper = self._rest(bucket, position)
        return here * _middle(position, upper) + (1.0 - here) * self._mean[bucket + 1]

    def end_quantile(self, position: float, q: float) -> float:
        """The end that with probability ``q`` is not exceeded, given end > position."""
        bucket = bisect_right(self._edges, position) - 1
        if bucket < len(self._hazards):
            here, upper = self._rest(bucket, position)
            if q < here:
                return position + (upper - position) * q / here
            # survival falls along the edges: find the bucket in which it passes what is asked for
            reached = self._survival[bucket + 1]
            wanted = (1.0 - q) / max(1e-12, 1.0 - here) * reached
            last = bisect_right(self._survival, -wanted, key=lambda s: -s) - 1
            if last < len(self._hazards):
                low, high = self._edges[last], self._edges[last + 1]
                ending = self._survival[last] - self._survival[last + 1]
                return low + (high - low) * (self._survival[last] - wanted) / max(1e-300, ending)
            position, q = self._edges[-1], 1.0 - wanted / max(1e-300, self._survival[-1])
        return position * (1.0 - self._overtime * math.log(max(1e-6, 1.0 - q)))

    def spread(self, position: float, count: int) -> tuple[float, ...]:
        """``count`` ascending ends of equal weight, given end > position; ``count`` must stay the same."""
        ends = self._spreads.get(position)
        if ends is None:
            if len(self._spreads) >= self.SPREADS:
                self._spreads.clear()
            ends = tuple(self.end_quantile(position, (i + 0.5) / count) for i in range(count))
            self._spreads[position] = ends
        return ends

    def _rest(self, bucket: int, position: float) -> tuple[float, float]:
        """Probability of an end in the rest of this bucket, and its upper edge; ends spread evenly in it."""
        low, upper = self._edges[bucket], self._edges[bucket + 1]
        passed = (position - low) / (upper - low)
        hazard = self._hazards[bucket]
        return hazard * (1.0 - passed) / max(1e-12, 1.0 - hazard * passed), upper


class LifeTable:
    """Counts for all classes over buckets [edges[i], edges[i + 1]); ``prior`` gives their hazards before
    anything is known. Past the last edge an end is expected after ``overtime`` of the position more."""

    CLASSES = 256

    def __init__(self, edges: Sequence[float], prior: Sequence[float], overtime: float) -> None:
        self._edges, self._prior, self._overtime = edges, prior, overtime
        self._pooled = Counts(len(prior))
        self._classes: dict[int, Counts] = {}
        self._compiled: dict[int | None, Ahead] = {}
        self._pending: list[Move] = []
        self._pending_endings = 0
        self._weight = 1.0
        self._applied = 0
        self.endings = 0

    def dump(self) -> Table:
        """All that was learned."""
        return Table(
            self._pooled.dump(),
            {size: counts.dump() for size, counts in self._classes.items()},
            list(self._pending),
            self._weight,
            self._applied,
            self.endings,
        )

    def load(self, known: Table) -> None:
        """Know that and no more. Raises ValueError where it does not fit, and knows what it knew then."""
        buckets = len(self._prior)
        if known.weight < 1.0 or any(not 0 <= m.start <= m.end < buckets for m in known.pending):
            raise ValueError("a life table never was like this")
        pooled = Counts.loaded(buckets, known.pooled)
        self._classes = {size: Counts.loaded(buckets, counts) for size, counts in known.classes.items()}
        self._pooled, self._pending, self._weight = pooled, list(known.pending), known.weight
        self._pending_endings = sum(move.ended for move in known.pending)
        self._applied, self.endings = known.applied, known.endings
        self._compiled.clear()

    def bucket(self, position: float) -> int:
        """Index of the bucket, the last one for all beyond."""
        return min(len(self._prior) - 1, bisect_right(self._edges, position) - 1)

    def observe(self, size: int, start: int, end: int, *, ended: bool) -> None:
        """A program went on from one bucket to another, or ended there."""
        if end <= start and not ended:
            return
        self._pending.append(Move(size, start, max(start, end), ended))
        self.endings += ended
        self._pending_endings += ended
        due = self._pending_endings * 8 > min(MEMORY, self.endings)
        if due or len(self._pending) >= min(BATCH_MOVES, 16 + self._applied // 8):
            self._apply()

    def ahead(self, size: int | None) -> Ahead:
        """The table of a class; of all programs together, for None."""
        table = self._compiled.get(size)
        if table is None:
            if len(self._compiled) >= self.CLASSES:
                del self._compiled[next(iter(self._compiled))]
            table = self._compiled[size] = Ahead(self._edges, self._hazards(size), self._overtime)
        return table

    def _apply(self) -> None:
        for move in self._pending:
            counts = self._classes.pop(move.size, None) or Counts(len(self._prior))
            if len(self._classes) >= self.CLASSES:
                del self._classes[next(iter(self._classes))]
            self._classes[move.size] = counts
            counts.add(move, self._weight)
            self._pooled.add(move, self._weight)
            if move.ended:
                self._weight *= 1.0 + 1.0 / MEMORY
        self._applied += len(self._pending)
        self._pending.clear()
        self._pending_endings = 0
        self._compiled.clear()
        if self._weight > 1e9:
            self._rescale()

    def _rescale(self) -> None:
        for counts in (self._pooled, *self._classes.values()):
            counts.left = [count / self._weight for count in counts.left]
            counts.ended = [count / self._weight for count in counts.ended]
        self._weight = 1.0

    def _hazards(self, size: int | None) -> list[float]:
        pooled = self._pooled
        share = (1.0 if size is None else ALOOF) / self._weight
        left = [count * share for count in pooled.left]
        ended = [count * share for count in pooled.ended]
        for away, nearness in () if size is None else KERNEL:
            counts = self._classes.get((size or 0) + away)
            if counts is not None:
                weight = nearness / self._weight
                left = [total + weight * count for total, count in zip(left, counts.left, strict=True)]
                ended = [total + weight * count for total, count in zip(ended, counts.ended, strict=True)]
        return [(e + LEAN * prior) / (n + LEAN) for e, n, prior in zip(ended, left, self._prior, strict=True)]


def _middle(low: float, high: float) -> float:
    return (low + high) / 2
