"""cargo and go.

cargo shows a bar of compiled crates only on terminals (``CARGO_TERM_PROGRESS_WHEN=always`` brings it
elsewhere); its test binaries each say how many tests they have, not how many binaries come. go says
no total at all. For both the number of the last run of the same command helps.
"""

from __future__ import annotations

import re

from agentsched.cgroups.progress.reading import Reader

_BAR = re.compile(rb"\s*Building \[[=> ]*\] (\d+)/(\d+)")
_FINISHED = re.compile(rb"\s+Finished ")
_RUNNING = re.compile(rb"running (\d+) tests?$")
_RESULT = re.compile(rb"test .* \.\.\. (?:ok|FAILED|ignored)\b")
_DOC_TESTS = re.compile(rb"\s+Doc-tests ")

MORE_BINARIES = 0.9
"""At most so much is done while further test binaries may come."""

BUILD_SHARE = 0.5
"""Of a test run, for building, where the bar shows that there is something to build."""


class Cargo(Reader):
    """``tests``: tests run after the build."""

    name = "cargo"

    def __init__(self, expected: int = 0, *, tests: bool = True) -> None:
        super().__init__(expected)
        self._tests = tests
        self._built: float | None = None
        self._announced = 0
        self._done = 0
        self._last = False

    def line(self, text: bytes) -> None:
        if match := _RUNNING.match(text):
            self._announced += int(match[1])
        elif _RESULT.match(text):
            self._done += 1
            self.counted = self._done
        elif match := _BAR.match(text):
            self._built = min(1.0, int(match[1]) / max(1, int(match[2])))
        elif _FINISHED.match(text):
            self._built = None if self._built is None else 1.0
            self.over = not self._tests
        elif _DOC_TESTS.match(text):
            self._last = True

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        if self.over:
            return 1.0
        share = BUILD_SHARE if self._built is not None and self._tests else 0.0
        if self._announced or (self._last and self._done):
            done = self._done + (1 if _RESULT.match(unfinished) else 0)
            total = max(self.expected, self._announced)
            self.source = f"{done} of {total} tests so far announced"
            most = 1.0 if self._last or self.expected else MORE_BINARIES
            return share + (1 - share) * min(most, done / total)
        built = self._built
        if match := _BAR.match(unfinished):
            built = min(1.0, int(match[1]) / max(1, int(match[2])))
        if built is None:
            return None
        self.source = "crates built"
        return built * (BUILD_SHARE if self._tests else 1.0)


_GO_TEST = re.compile(rb"--- (?:PASS|FAIL|SKIP): ")
_GO_PACKAGE = re.compile(rb"(?:ok  ?|FAIL|\?   )\t\S+\t")


class GoTest(Reader):
    """Counts top-level tests (``-v``) and packages against the number of the last run."""

    name = "go"

    def line(self, text: bytes) -> None:
        if _GO_TEST.match(text) or _GO_PACKAGE.match(text):
            self.counted += 1

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        if not self.expected:
            return None
        self.source = f"{self.counted} of {self.expected} results, the number of the last run"
        return min(1.0, self.counted / self.expected)
