"""Tool calls that answers asked for, with their arguments: for whoever sees commands run and wants to know
whose they are (``agentsched wrap``).

Kept in memory only, a tenant's apart, until their results come or too many others have come since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentsched.daemon.identity import Identities
from agentsched.daemon.recent import Recent

MOST_TOOLS = 4096
MOST_CHARS = 65_536
"""Of the arguments of one: what is longer (a file that is written) is no command."""


@dataclass(frozen=True, slots=True)
class AskedTool:
    """One of them. ``run``: what stood for the program in the URL of the call, if anything did."""

    tool_call: str
    tool: str
    arguments: str
    program: str
    run: str
    asked_s: float


class AskedTools:
    """Those of one tenant."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._asked: Recent[str, AskedTool] = Recent(MOST_TOOLS)

    def note(self, asked: AskedTool) -> None:
        """An answer asks for it."""
        if len(asked.arguments) <= MOST_CHARS:
            self._asked[asked.tool_call] = asked

    def open(self, run: str) -> Iterator[AskedTool]:
        """Those without a result, of a run or program of this name (of all for ""); the first asked first."""
        for asked in self._asked.values():
            minted = self._identities.minted(asked.tool_call)
            if minted is None or minted.answered:
                self._asked.pop(asked.tool_call)
            elif run in ("", asked.run, asked.program):
                yield asked
