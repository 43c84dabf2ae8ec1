"""A table that forgets."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Generic, NamedTuple, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A table of at most ``limit`` entries that forgets what was not used for longest.

    Once it is ``watch``ed it remembers what has changed, for a copy that lasts longer.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._changed: dict[K, None] | None = None

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: K) -> V:
        self._entries.move_to_end(key)
        return self._entries[key]

    def __setitem__(self, key: K, value: V) -> None:
        entries = self._entries
        entries[key] = value
        entries.move_to_end(key)
        if self._changed is not None:
            self._changed[key] = None
        if len(entries) > self._limit:
            self.touch(entries.popitem(last=False)[0])

    def get(self, key: K) -> V | None:
        entries = self._entries
        if key not in entries:
            return None
        entries.move_to_end(key)
        return entries[key]

    def pop(self, key: K) -> V | None:
        self.touch(key)
        return self._entries.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """All of them, what was not used for longest first."""
        return list(self._entries.items())

    def values(self) -> list[V]:
        return list(self._entries.values())

    def touch(self, key: K) -> None:
        """The entry has changed in itself."""
        if self._changed is not None:
            self._changed[key] = None

    def watch(self) -> None:
        """Remember changes from now on."""
        self._changed = {}

    def changes(self) -> dict[K, V | None]:
        """What changed since this was last asked; None: it is gone. In order of the last change."""
        if not self._changed:
            return {}
        changed, self._changed = self._changed, {}
        return {key: self._entries.get(key) for key in changed}


class Table(NamedTuple):
    """A table for a copy that lasts longer, and what its keys and values are."""

    entries: Recent[Any, Any]
    key: type
    value: Any
