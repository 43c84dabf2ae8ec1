"""pip, apt-get and dpkg.

pip never says how much there is: its phases tell. Shares of phases are rough, measured on installs of
a dozen wheels on one machine; how rough, the forecast learns. apt says how many packages it unpacks.
"""

from __future__ import annotations

import re

from agentsched.cgroups.progress.reading import Reader

_WHEELS = re.compile(rb"Building wheels for collected packages: (.+)")
_WHEEL = re.compile(rb"\s*Building wheel for \S+ \(.*\): finished")
_INSTALLING = re.compile(rb"Installing collected packages: ")
_INSTALLED = re.compile(rb"Successfully (?:installed|uninstalled) ")

COLLECTED, RESOLVED = 0.2, 0.6
"""Shares of the whole when all is collected, and when installing begins."""


class Pip(Reader):
    """Wheels built, and the beginning of the installation."""

    name = "pip"

    def __init__(self, expected: int = 0) -> None:
        super().__init__(expected)
        self._share: float | None = None
        self._wheels = 0
        self._built = 0

    def line(self, text: bytes) -> None:
        if _INSTALLED.match(text):
            self.over, self._share, self.source = True, 1.0, "pip's end"
        elif _INSTALLING.match(text):
            self._share, self.source = RESOLVED, "pip installs what it collected"
        elif match := _WHEELS.match(text):
            self._wheels, self._built = match[1].count(b",") + 1, 0
            self._share, self.source = COLLECTED, "pip builds wheels"
        elif self._wheels and _WHEEL.match(text):
            self._built = min(self._wheels, self._built + 1)
            self._share = COLLECTED + (RESOLVED - COLLECTED) * self._built / self._wheels
            self.source = f"{self._built} of {self._wheels} wheels built"

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        return self._share


_PLANNED = re.compile(
    rb"(\d+) (?:packages )?upgraded, (\d+) newly installed, (?:\d+ downgraded, )?(\d+) to remove"
)
_GOT = re.compile(rb"Get:\d+ ")
_DONE = re.compile(rb"(?:Unpacking|Setting up|Removing) \S+")


class Apt(Reader):
    """Packages fetched, unpacked and set up, of those that it planned. ``packages``: so many are given to
    dpkg as files."""

    name = "apt"

    def __init__(self, expected: int = 0, *, packages: int = 0) -> None:
        super().__init__(expected)
        self._packages = 0
        self._steps = 2 * packages
        self._got = 0
        self._done = 0

    def line(self, text: bytes) -> None:
        if match := _PLANNED.search(text):
            fresh = int(match[1]) + int(match[2])
            self._packages, self._steps, self._got, self._done = fresh, 2 * fresh + int(match[3]), 0, 0
        elif _GOT.match(text):
            self._got += 1
        elif _DONE.match(text):
            self._done += 1

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        if not self._steps:
            return None
        # what was in the cache already is not fetched, which shows when the first one is unpacked
        got = self._packages if self._done else min(self._packages, self._got)
        fetched = f"{got} of {self._packages} packages fetched, " if self._packages else ""
        self.source = f"{fetched}{self._done} of {self._steps} packages unpacked or set up"
        return min(1.0, (got + self._done) / (self._packages + self._steps))
