"""A bounded window of samples, their keys, and the checks that keep garbage out of whatever learns."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable

import msgspec

LARGEST = 1e12
"""Amounts above this are taken for garbage; it keeps every sum finite."""


LONGEST_KEY = 200
"""Characters of a key that tell it from others: keys come from outside."""


def amount(name: str, value: float) -> float:
    """``value`` as it is. Raises ValueError, which names it, unless 0 <= ``value`` <= ``LARGEST``."""
    if not 0 <= value <= LARGEST:  # also refuses NaN
        raise ValueError(f"{name} must be between 0 and {LARGEST:g}, got {value!r}")
    return value


def share(name: str, value: float) -> float:
    """``value`` as it is. Raises ValueError, which names it, unless 0 <= ``value`` <= 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}")
    return value


class Window:
    """The last ``size`` samples, also in sorted order."""

    __slots__ = ("_recent", "_size", "ordered")

    def __init__(self, size: int) -> None:
        self._size = size
        self._recent: deque[float] = deque()
        self.ordered: list[float] = []
        """Ascending. Not to be changed."""

    def add(self, value: float) -> None:
        if len(self._recent) == self._size:
            oldest = self._recent.popleft()
            self.ordered.pop(bisect_right(self.ordered, oldest) - 1)
        self._recent.append(value)
        insort(self.ordered, value)

    def dump(self) -> list[float]:
        """The samples, oldest first."""
        return list(self._recent)

    @classmethod
    def loaded(cls, size: int, values: Iterable[float]) -> Window:
        """A window of these samples, oldest first. Raises ValueError on what was never dumped."""
        window = cls(size)
        for value in values:
            window.add(amount("a sample", value))
        return window

    def quantile(self, q: float) -> float:
        """The sample below which the share ``q`` lies. Precondition: there is one."""
        return self.ordered[min(len(self.ordered) - 1, int(q * len(self.ordered)))]


class Samples(msgspec.Struct, frozen=True):
    """Windows by key, and one of all together: what a model knows, as a value."""

    by_key: dict[str, list[float]] = {}
    pooled: list[float] = []

    @classmethod
    def of(cls, by_key: dict[str, Window], pooled: Window) -> Samples:
        return cls({key: window.dump() for key, window in by_key.items()}, pooled.dump())


def keys_of(tool: str) -> tuple[str, ...]:
    """The key and, where it names a command class too, its tool alone."""
    key = tool[:LONGEST_KEY]
    function, colon, _ = key.partition(":")
    return (key, function) if colon else (key,)
