"""Builds that number their steps: ninja's ``[12/340]``, CMake's ``[ 42%]`` under make.

Plain make, and compilers, say nothing of what is to come, and nothing is told of them.
"""

from __future__ import annotations

import re

from agentsched.cgroups.progress.reading import ShareReader

_STEP = re.compile(rb"\[ *(?:(\d+)/(\d+)|(\d+)%)\] \S")


class Build(ShareReader):
    """The last step said. ninja numbers a step when it begins or ends, by version; either does."""

    name = "build"
    shown_by = "the build's numbered steps"

    def share(self, text: bytes, before: float | None) -> float | None:
        match = _STEP.match(text)
        if match is None:
            return before
        if match[3]:
            return min(1.0, int(match[3]) / 100)
        return min(1.0, int(match[1]) / int(match[2])) if int(match[2]) else before
