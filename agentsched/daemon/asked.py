"""Tool calls that answers asked for, with their arguments: for whoever sees commands run and wants to know
whose they are (``agentsched wrap``).

Kept in memory only, a tenant's apart, until some time after their results came (who watches commands may come
late), or until too many others have come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from agentsched.daemon.recent import Recent

MOST_TOOLS = 4096
MOST_CHARS = 65_536
"""Of the arguments of one: what is longer (a file that is written) is no command."""


KEPT_S = 30.0
"""For so long after their results."""


@dataclass(slots=True)
class AskedTool:
    """One of them. ``run``: what stood for the program in the URL of the call, if anything did. ``result_s``:
    when its result came. Monotonic seconds."""

    tool_call: str
    tool: str
    arguments: str
    program: str
    run: str
    asked_s: float
    result_s: float | None = None


class AskedTools:
    """Those of one tenant."""

    def __init__(self) -> None:
        self._asked: Recent[str, AskedTool] = Recent(MOST_TOOLS)

    def note(self, asked: AskedTool) -> None:
        """An answer asks for it."""
        if len(asked.arguments) <= MOST_CHARS:
            self._asked[asked.tool_call] = asked

    def results(self, tool_calls: Collection[str], now: float) -> None:
        """A call brings their results."""
        for tool_call in tool_calls:
            if (asked := self._asked.get(tool_call)) is not None and asked.result_s is None:
                asked.result_s = now

    def listed(self, run: str, now: float) -> Iterator[AskedTool]:
        """Those of a run or program of this name, of all for ""; in order of asking."""
        for asked in sorted(self._asked.values(), key=lambda each: each.asked_s):
            if asked.result_s is not None and asked.result_s < now - KEPT_S:
                self._asked.pop(asked.tool_call)
            elif run in ("", asked.run, asked.program):
                yield asked
