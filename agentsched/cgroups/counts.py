"""What commands counted (tests, as a rule) when they ran before: totals for tools that tell none."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from agentsched.cgroups.contract import ToolSpec


class Counts:
    """What commands counted to their ends, by their text; the last ``MOST`` of them. Thread-safe."""

    MOST = 256

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], dict[str, int]] = {}
        self._lock = threading.Lock()

    def of(self, spec: ToolSpec) -> dict[str, int]:
        """What the same command counted when it last ended by itself."""
        with self._lock:
            return dict(self._known.get(_key(spec), {}))

    def learn(self, spec: ToolSpec, counted: Mapping[str, int]) -> None:
        """The command ended by itself."""
        if not counted:
            return
        with self._lock:
            self._known.pop(_key(spec), None)
            if len(self._known) >= self.MOST:
                del self._known[next(iter(self._known))]
            self._known[_key(spec)] = dict(counted)


def _key(spec: ToolSpec) -> tuple[str, ...]:
    return (spec.cwd or "", spec.command, *spec.argv)
