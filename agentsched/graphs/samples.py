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


def keys_of(tool: str) -> tuple[str, ...]:
    """The key and, where it names a command class too, its tool alone."""
    key = tool[:LONGEST_KEY]
    function, colon, _ = key.partition(":")
    return (key, function) if colon else (key,)


class KeyedWindows:
    """The last samples of each key, of each tool, and of all together."""

    PER_KEY = 100
    POOLED = 200
    MOST_KEYS = 1024
    """Past this, the key seen least recently is forgotten: names come from outside."""

    def __init__(self) -> None:
        self._by_key: dict[str, Window] = {}
        self.pooled = Window(self.POOLED)

    def add(self, tool: str, value: float) -> None:
        for key in keys_of(tool):
            window = self._by_key.pop(key, None) or Window(self.PER_KEY)
            if len(self._by_key) >= self.MOST_KEYS:
                del self._by_key[next(iter(self._by_key))]
            self._by_key[key] = window
            window.add(value)
        self.pooled.add(value)

    def of(self, tool: str) -> list[Window]:
        """Those that there are of the key and of its tool, narrowest first."""
        return [window for key in keys_of(tool) if (window := self._by_key.get(key)) is not None]

    def dump(self) -> Samples:
        """All that was learned."""
        by_key = {key: window.dump() for key, window in self._by_key.items()}
        return Samples(by_key, self.pooled.dump())

    def load(self, known: Samples) -> None:
        """Know that and no more. Raises ValueError on what was never dumped."""
        pooled = Window.loaded(self.POOLED, known.pooled)
        self._by_key = {
            key: Window.loaded(self.PER_KEY, values)
            for key, values in list(known.by_key.items())[-self.MOST_KEYS :]
        }
        self.pooled = pooled
