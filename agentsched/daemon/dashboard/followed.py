"""One program as it is followed: its row, what of that is new, and what is open."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from agentsched.core import decisions as de
from agentsched.daemon.dashboard.rows import CallRow, Doing, Kept, ProgramRow, Span, ToolRow

_SHOWN: tuple[Doing, ...] = ("decode", "prefill", "queue", "gateway")
"""Where calls do several of these at once, the first is shown: who computes is computing."""

SAMPLE_S = 0.25
"""Where KV is, is told several times a second; the page shows no more than this."""


@dataclass(slots=True)
class Most:
    """How much of a program is kept, the latest; None: all of it."""

    spans: int | None = 400
    kept: int | None = 400
    calls: int | None = 80


@dataclass(slots=True)
class Followed:
    """``live``: what each live call does. ``open``: tool calls without a result yet. Times are monotonic
    seconds."""

    row: ProgramRow
    live: dict[str, Doing] = field(default_factory=dict)
    open: dict[str, ToolRow] = field(default_factory=dict)
    order: de.Retain | None = None
    """What its KV is worth."""
    device_tokens: int = 0
    host_tokens: int = 0
    context_tokens: int = 0
    told_wait: str = ""
    _calls: dict[str, CallRow] = field(default_factory=dict)
    _tools: dict[str, ToolRow] = field(default_factory=dict)
    _new_spans: int = 0
    _new_kept: int = 0
    _new_calls: dict[str, CallRow] = field(default_factory=dict)
    _new_tools: dict[str, ToolRow] = field(default_factory=dict)

    @property
    def doing(self) -> Doing:
        if self.row.ended_s is not None:
            return "ended"
        if self.live:
            doing = self.live.values()
            return next(kind for kind in _SHOWN if kind in doing)
        return "tool" if self.open else "agent"

    # What happens

    def turn(self, now: float) -> None:
        """After any change: a new span, if it does something else now."""
        spans, doing = self.row.spans, self.doing
        if spans and spans[-1].doing == doing:
            return
        if spans and spans[-1].start_s >= now:
            del spans[-1]
            self._new_spans = max(0, self._new_spans - 1)
            if spans and spans[-1].doing == doing and self._new_spans:
                return
        spans.append(Span(now, doing))
        self._new_spans += 1

    def keep(self, now: float) -> None:
        """After any change of where its KV is, or of its context."""
        kept = self.row.kept
        here = Kept(now, self.device_tokens, self.host_tokens, self.context_tokens)
        if kept and kept[-1][1:] == here[1:]:
            return
        if kept and now < kept[-1].at_s + SAMPLE_S:
            kept[-1] = here._replace(at_s=kept[-1].at_s)
            self._new_kept = max(1, self._new_kept)
        else:
            kept.append(here)
            self._new_kept += 1

    def call(self, name: str) -> CallRow | None:
        """The call, which is about to change; None if it is not known."""
        row = self._calls.get(name)
        if row is not None:
            self._new_calls[name] = row
        return row

    def add_call(self, row: CallRow) -> None:
        self._calls[row.call] = self._new_calls[row.call] = row
        self.row.calls.append(row)

    def tool(self, name: str) -> ToolRow | None:
        """The same of a tool call."""
        row = self._tools.get(name)
        if row is not None:
            self._new_tools[name] = row
        return row

    def add_tool(self, row: ToolRow) -> ToolRow:
        self._tools[row.tool_call] = self._new_tools[row.tool_call] = self.open[row.tool_call] = row
        self.row.tools.append(row)
        return row

    def answered(self, now: float, tool_call: str) -> None:
        """A call carries its result."""
        if self.open.pop(tool_call, None) is not None and (row := self.tool(tool_call)) is not None:
            row.ended_s = now

    # What is sent

    def news(self) -> ProgramRow:
        """All facts, and of the lists what is new since this was last asked."""
        row = self.row
        news = msgspec.structs.replace(
            row,
            spans=row.spans[len(row.spans) - self._new_spans :],
            kept=row.kept[len(row.kept) - self._new_kept :],
            calls=list(self._new_calls.values()),
            tools=list(self._new_tools.values()),
        )
        self.all_told()
        return news

    def all_told(self) -> None:
        """Nothing is new."""
        self._new_spans = self._new_kept = 0
        self._new_calls, self._new_tools = {}, {}

    def trim(self, most: Most) -> None:
        """Forget the oldest of what is too much. Nothing may be new."""
        row = self.row
        if most.spans is not None:
            del row.spans[: -most.spans]
        if most.kept is not None:
            del row.kept[: -most.kept]
        if most.calls is not None:
            for call in row.calls[: -most.calls]:
                self._calls.pop(call.call, None)
            for tool in row.tools[: -2 * most.calls]:
                self._tools.pop(tool.tool_call, None)
            del row.calls[: -most.calls], row.tools[: -2 * most.calls]
