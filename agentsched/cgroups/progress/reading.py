"""What a reader of a tool's output is: fed lines, asked for the share done. No clock, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

LONGEST_LINE = 4096
"""Bytes; a longer line reaches readers in pieces of this length."""

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])|[\x00\x07\x08]")


class Reader:
    """Reads one kind of output. Subclasses override what they need; nothing here may raise.

    ``expected``: units (tests, as a rule) that the same command had when it ran before; 0: not known.
    It counts for no more than a guess: what the tool itself says of its total comes first.
    """

    name = ""
    """By which counts are remembered."""

    environment: ClassVar[Mapping[str, str]] = {}
    """Variables without which the tool's output is late, set where the caller did not set them."""

    def __init__(self, expected: int = 0) -> None:
        self.expected = expected
        self.source = ""
        """What the share was last read from, in words."""
        self.over = False
        """The tool said that it is through."""
        self.counted = 0
        """Units done in all, once ``over``; 0: this reader does not count."""

    def line(self, text: bytes) -> None:
        """A whole line, without its end and without escape sequences."""

    def piece(self, text: bytes) -> None:
        """``LONGEST_LINE`` bytes of a line that goes on; its last part comes as another line."""

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        """The share done, 0 to 1, or None without evidence. ``unfinished``: the line that is being
        written. Must not change what is known: it is asked at any time, or never."""
        return None


class ShareReader(Reader):
    """A tool whose lines tell the share itself. ``shown_by`` says where."""

    shown_by = ""

    def __init__(self, expected: int = 0) -> None:
        super().__init__(expected)
        self._share: float | None = None

    def line(self, text: bytes) -> None:
        self._share = self.share(text, self._share)

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        self.source = self.shown_by
        return self.share(unfinished, self._share)

    def share(self, text: bytes, before: float | None) -> float | None:
        """What a line tells; ``before`` if it tells nothing."""
        raise NotImplementedError


def plain(line: bytes) -> bytes:
    """A line without terminal escape sequences."""
    return _ESCAPES.sub(b"", line) if b"\x1b" in line or b"\x08" in line or b"\x00" in line else line


class Lines:
    """Cuts a stream into lines at line feeds and carriage returns, wherever its chunks end. Keeps less
    than ``LONGEST_LINE`` bytes."""

    def __init__(self) -> None:
        self.unfinished = b""

    def feed(self, chunk: bytes) -> list[tuple[bytes, bool]]:
        """Lines, and pieces of overlong ones (True: a whole line). Empty lines are left out."""
        *whole, rest = (self.unfinished + chunk).replace(b"\r", b"\n").split(b"\n")
        found: list[tuple[bytes, bool]] = []
        for line in whole:
            if line:
                rest_of_line = self._cut(line, found)
                found.append((rest_of_line, True))
        self.unfinished = self._cut(rest, found)
        return found

    def drop(self) -> None:
        """Some of the stream was left out: what was begun is no line any more."""
        self.unfinished = b""

    @staticmethod
    def _cut(line: bytes, found: list[tuple[bytes, bool]]) -> bytes:
        while len(line) >= LONGEST_LINE:
            found.append((line[:LONGEST_LINE], False))
            line = line[LONGEST_LINE:]
        return line
