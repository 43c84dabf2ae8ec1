"""Which engines are worth a look for whoever is next: those where something changed since it was refused."""

from __future__ import annotations

from collections.abc import Iterable

from agentsched.core.state import Program


class Openings:
    """For one line of programs. A program that is first in it for the first time looks at every engine."""

    def __init__(self) -> None:
        self._for: str | None = None
        self._engines: set[str] = set()

    def changed(self, engine: str) -> None:
        """Something is different there; it may have room now."""
        self._engines.add(engine)

    def lost(self, engine: str) -> None:
        self._engines.discard(engine)
        self._for = None

    def anew(self, program: str | None = None) -> None:
        """Every engine is worth a look again: for the program, or for anybody."""
        if program is None or program == self._for:
            self._for = None

    def first(self, program: Program, engines: Iterable[str]) -> bool:
        """The program is first in line. Whether it was not so yet, so that all ``engines`` are open to it."""
        is_new = self._for != program.name
        if is_new:
            self._for = program.name
            self._engines.update(engines)
        return is_new

    def engines(self) -> frozenset[str]:
        return frozenset(self._engines)

    def refused(self, engine: str) -> None:
        """There is no room for it there."""
        self._engines.discard(engine)
