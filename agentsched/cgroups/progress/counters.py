"""Counters of any tool (``42%``, ``12/340``; tqdm, wget, rsync, docker), curl's meter, git's phases.

A number alone is no progress: ``80%`` may be a coverage, ``3/4`` a date. A counter is believed once the
text before it, digits aside, has come with numbers that rose, ``believed_after`` times, to one total. If
it falls back, there are several in a row, nobody knows how many, and it tells nothing any more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from agentsched.cgroups.progress.reading import Reader, ShareReader

_COUNT = re.compile(
    rb"(?<![\d.])(\d{1,3})(?:\.(\d{1,3}))?\s?%|(?<![\d./])(\d{1,9})\s?(?:/|of)\s?(\d{1,9})(?![\d./])"
)
_VARIES = re.compile(rb"[\d.,\s]+")

MOST_SHAPES = 16
NEARLY = 0.99
"""A counter may count only the longest of a tool's parts."""


class Counter(NamedTuple):
    """Of one shape of lines: where it stood last, its total (100 for percent), how often it rose."""

    share: float
    total: int
    rises: int = 0
    broken: bool = False


class Counters(Reader):
    """See above."""

    name = "counter"

    def __init__(self, expected: int = 0, *, believed_after: int = 3) -> None:
        super().__init__(expected)
        self._needed = believed_after
        self._shapes: dict[bytes, Counter] = {}

    def line(self, text: bytes) -> None:
        if found := _look(text):
            shape, share, total = found
            if shape not in self._shapes and len(self._shapes) >= MOST_SHAPES:
                del self._shapes[next(iter(self._shapes))]
            self._shapes[shape] = _next(self._shapes.get(shape), share, total)

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        shapes = self._shapes
        if found := _look(unfinished):
            shape, share, total = found
            shapes = shapes | {shape: _next(shapes.get(shape), share, total)}
        for shape, counter in shapes.items():
            if counter.rises >= self._needed and not counter.broken:
                self.source = f"its own counter {shape.decode(errors='replace')[:40]!r}"
                return min(NEARLY, counter.share)
        return None


def _look(text: bytes) -> tuple[bytes, float, int] | None:
    match = _COUNT.search(text[:400])
    if match is None:
        return None
    shape = _VARIES.sub(b" ", text[: match.start()])[-60:].strip()
    if match[1]:
        share = float(b"%b.%b" % (match[1], match[2] or b"0")) / 100
        return (shape, share, 100) if share <= 1 else None
    done, total = int(match[3]), int(match[4])
    return (shape, done / total, total) if total > 1 and done <= total else None


def _next(counter: Counter | None, share: float, total: int) -> Counter:
    if counter is None or counter.total != total:
        # of another total: another count under the same words
        return Counter(share, total, 1, counter is not None and counter.rises > 1)
    if share < counter.share:
        return counter._replace(broken=True)
    return counter._replace(share=share, rises=counter.rises + (share > counter.share))


_CURL = re.compile(rb"\s*(\d{1,3}) +[\d.]+[kMGTP]? +\d{1,3} +[\d.]+[kMGTP]? +\d{1,3} +\d")


class Curl(ShareReader):
    """The first column of curl's meter."""

    name = "curl"
    shown_by = "curl's meter"

    def share(self, text: bytes, before: float | None) -> float | None:
        match = _CURL.match(text)
        if match is None:
            return before
        # a total that is not known shows as 0 of 0
        return min(NEARLY, int(match[1]) / 100) if int(match[1]) else before


class Phases(ShareReader):
    """Percent within named phases, each of which has a share of the whole: git's."""

    name = "phases"
    shown_by = "the phases that it names"

    def __init__(self, phases: Sequence[tuple[bytes, float, float]]) -> None:
        super().__init__()
        self._phases = phases

    def share(self, text: bytes, before: float | None) -> float | None:
        for label, begin, end in self._phases:
            at = text.find(label)
            if at >= 0 and (match := re.match(rb":\s+(\d{1,3})%", text[at + len(label) :])):
                return begin + (end - begin) * min(1.0, int(match[1]) / 100)
        return before


GIT_PHASES = (
    (b"Receiving objects", 0.05, 0.8),
    (b"Resolving deltas", 0.8, 0.95),
    (b"Updating files", 0.95, 1.0),
)
