"""npm, yarn, pnpm, and the test runners of Node (jest, vitest, mocha, node --test, TAP).

npm prints nothing until it is done, unless it has a terminal: nothing can be told. The runners print
no total before the end, but for TAP with its plan first: there the number of the last run counts.
"""

from __future__ import annotations

import re

from agentsched.cgroups.progress.reading import Reader, ShareReader

_STEP = re.compile(rb"\[(\d+)/(\d+)\] \S")
_PNPM = re.compile(rb"Progress: resolved (\d+), reused \d+, downloaded \d+, added (\d+)(, done)?")
RESOLVING_GROWS = 0.9
"""pnpm resolves while it adds, so that its total grows: at most so much is done before it says so."""


class Install(ShareReader):
    """yarn's steps and pnpm's packages."""

    name = "node-install"
    shown_by = "the installer's steps"

    def share(self, text: bytes, before: float | None) -> float | None:
        if match := _STEP.match(text):
            return min(1.0, max(0, int(match[1]) - 1) / max(1, int(match[2])))
        if match := _PNPM.search(text):
            return 1.0 if match[3] else min(RESOLVING_GROWS, int(match[2]) / max(1, int(match[1])))
        return before


_PLAN = re.compile(rb"1\.\.(\d+)\b")
_POINT = re.compile(rb"(?:not )?ok\b")
_SUITES = re.compile(rb"Test Suites: .*?(\d+) of (\d+) total")
_MARK = re.compile(
    rb"\s*(?:PASS|FAIL) \S|\s*(?:\xe2\x9c\x93|\xe2\x9c\x94|\xe2\x9c\x96|\xe2\x9c\x97|\xc3\x97|\d+\)) "
)
_END = re.compile(rb"(?:Tests:|\s+Tests ) +\d|\s+\d+ passing\b|(?:#|\xe2\x84\xb9) tests (\d+)")


class NodeTests(Reader):
    """Marked lines, jest's dynamic summary, and TAP."""

    name = "node-tests"

    def __init__(self, expected: int = 0) -> None:
        super().__init__(expected)
        self._total = 0
        self._done = 0

    def line(self, text: bytes) -> None:
        if _END.match(text):
            self.over, self.counted = True, self._done
        elif match := _PLAN.match(text):
            self._total = int(match[1])
        elif match := _SUITES.match(text):
            self._done, self._total = int(match[1]), int(match[2])
        elif _POINT.match(text) or _MARK.match(text):
            self._done += 1

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        total = self._total or self.expected
        if self.over and (total or self._done):
            self.source = "the runner's summary"
            return 1.0
        if not total:
            return None
        self.source = f"{self._done} of {total} results"
        return min(1.0, self._done / total)
