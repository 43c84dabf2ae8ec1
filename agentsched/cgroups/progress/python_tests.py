"""pytest (dots, percent, counts, verbose, xdist) and unittest (dots, verbose; Django's runner).

pytest says how many tests there are, except with ``-q``, where only the percentages at the ends of full
lines tell. unittest never says: there the number of the last run of the same command counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from agentsched.cgroups.progress.reading import Reader

_COLLECTED = re.compile(
    rb"collected (\d+) items?(?: / \d+ errors?)?(?: / \d+ deselected)?(?: / (\d+) selected)?"
)
_WORKERS = re.compile(rb"(?:gw\d+ \[(\d+)\]|\d+ workers? \[(\d+) items?\])")
_SHARE = re.compile(rb"\[ *(?:(\d+)%|(\d+)/(\d+))\]$")
_DOTS = re.compile(rb"(?:\S+\.\w+ +)?([.FEsxXRu,-]+)\s*(?:\[ *\d+(?:%|/\d+)\])?$")
_SUBTESTS = (b"u", b",", b"-")
"""Results of parts of a test, which do not count in pytest's total."""

_VERBOSE = re.compile(rb"(?:^\[gw\d+\].*|^\S*::.* )(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_SUMMARY = re.compile(rb"(?:=+ )?(?:no tests ran|(\d+ \w+(?:, )?)+) in [\d.]+s\b")
_COUNTS = re.compile(rb"(\d+) (?:passed|failed|skipped|xfailed|xpassed|errors?)\b")
_SECTION = re.compile(rb"={3,} (?:FAILURES|ERRORS|warnings summary|short test summary info)")


UNBUFFERED = {"PYTHONUNBUFFERED": "1"}
"""Else dots stay in Python's buffer until there are 8 KiB of them."""


class Pytest(Reader):
    """``sure``: the command is known to be pytest. Else dots count only once it has said its total."""

    name = "pytest"
    environment: ClassVar[Mapping[str, str]] = UNBUFFERED

    def __init__(self, expected: int = 0, *, sure: bool = True) -> None:
        super().__init__(expected)
        self._sure = sure
        self._total = 0.0
        self._done = 0.0
        self._share = 0.0
        self._reported = False

    def line(self, text: bytes) -> None:
        if match := _SUMMARY.match(text):
            self.over = True
            self.counted = sum(int(count) for count in _COUNTS.findall(match.group()))
        elif _SECTION.match(text):
            self._reported = True
        elif match := _COLLECTED.search(text):
            self._begin(int(match[2] or match[1]))
        elif match := _WORKERS.match(text):
            self._begin(int(match[1] or match[2]))
        elif not self._reported:
            self._count(text)

    def _begin(self, total: int) -> None:
        self._total, self._done, self._share = float(total), 0.0, 0.0

    def _count(self, text: bytes) -> None:
        self._done += self._results(text)
        match = _SHARE.search(text)
        if match is None or not (self._sure or self._total) or not self._results(text):
            return
        if match[3]:
            self._total = max(1.0, float(match[3]))
            self._done = max(self._done, float(match[2]))
        elif self._total:
            self._done = max(self._done, int(match[1]) / 100 * self._total)
        else:
            self._share = min(1.0, int(match[1]) / 100)
            self._expect()

    def _expect(self) -> None:
        """Without a total: what so many results at so many percent come to."""
        if self._done and self._share:
            self.expected = max(round(self._done), round(self._done / self._share))

    def _results(self, text: bytes) -> int:
        if match := _DOTS.match(text):
            return len(match[1]) - sum(match[1].count(letter) for letter in _SUBTESTS)
        return 1 if _VERBOSE.search(text) else 0

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        if self.over or self._reported:
            self.source = "pytest's end"
            return 1.0 if self._sure or self._total else None
        total = self._total or (self.expected if self._sure else 0)
        if not total:
            return None
        done = self._done + self._results(unfinished)
        self.source = f"{done:.0f} of {total:.0f} tests" + ("" if self._total else " or so")
        return min(1.0, done / total)


_UNIT_DOTS = re.compile(rb"[.FEsxu]+$|\.+(?=/)")
_UNIT_VERBOSE = re.compile(
    rb".* \.\.\. (?:ok|FAIL|ERROR|skipped\b.*|expected failure|unexpected success)$|ok$"
)
_UNIT_END = re.compile(rb"Ran (\d+) tests? in ")
_DJANGO = re.compile(rb"Found (\d+) test\(s\)")


class Unittest(Reader):
    """Counts results against Django's total, or the number of the last run."""

    name = "unittest"
    environment: ClassVar[Mapping[str, str]] = UNBUFFERED

    def __init__(self, expected: int = 0) -> None:
        super().__init__(expected)
        self._total = 0
        self._done = 0

    def line(self, text: bytes) -> None:
        if match := _UNIT_END.match(text):
            self.over, self.counted = True, int(match[1])
        elif match := _DJANGO.match(text):
            self._total = int(match[1])
        else:
            self._done += _unit_results(text)

    def piece(self, text: bytes) -> None:
        self._done += _unit_results(text)

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        if self.over:
            self.source = "unittest's end"
            return 1.0
        total = self._total or self.expected
        if not total:
            return None
        done = self._done + _unit_results(unfinished)
        self.source = f"{done} of {total} tests" + ("" if self._total else ", the number of the last run")
        return min(1.0, done / total)


def _unit_results(text: bytes) -> int:
    if match := _UNIT_DOTS.match(text):
        return len(match.group())
    return 1 if _UNIT_VERBOSE.match(text) else 0
