"""Builds that number their steps: ninja's ``[12/340]``, CMake's ``[ 42%]`` under make.

Plain make, and compilers, say nothing of what is to come, and nothing is told of them.
"""

from __future__ import annotations

import re

from agentsched.cgroups.progress.reading import Reader

_STEP = re.compile(rb"\[ *(?:(\d+)/(\d+)|(\d+)%)\] \S")


class Build(Reader):
    """The last step said. ninja numbers a step when it begins or ends, by version; either does."""

    name = "build"

    def __init__(self, expected: int = 0) -> None:
        super().__init__(expected)
        self._share: float | None = None

    def line(self, text: bytes) -> None:
        self._share = _share(text, self._share)

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        share = _share(unfinished, self._share)
        self.source = "the build's numbered steps"
        return share


def _share(text: bytes, before: float | None) -> float | None:
    match = _STEP.match(text)
    if match is None:
        return before
    if match[3]:
        return min(1.0, int(match[3]) / 100)
    return min(1.0, int(match[1]) / int(match[2])) if int(match[2]) else before
