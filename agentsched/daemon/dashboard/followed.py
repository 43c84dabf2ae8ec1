"""One program as it is followed: its row, what of that is new, and what is open."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import msgspec

from agentsched.core import decisions as de
from agentsched.daemon.dashboard.rows import CallRow, Doing, Keep, Kept, ProgramRow, Span, ToolRow

_SHOWN: tuple[Doing, ...] = ("decode", "prefill", "queue", "gateway")
"""Where calls do several of these at once, the first is shown: who computes is computing."""

SAMPLE_S = 0.25
"""Where KV is, is told several times a second; the page shows no more than this."""

SEEN_SHARE = 1 / 40
"""Of a context: a part that grows by less is drawn no higher."""


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
    _begun: Kept | None = None
    """What the last of ``row.kept`` began with; it is what is held now."""
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
        if kept and (now < kept[-1].at_s + SAMPLE_S or _looks_like(here, self._begun)):
            kept[-1] = here._replace(at_s=kept[-1].at_s)
            self._new_kept = max(1, self._new_kept)
        else:
            kept.append(here)
            self._begun = here
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

    def trim(self, keep: Keep, now: float) -> None:
        """Forget the oldest of what is too much. Nothing may be new."""
        row = self.row
        _cut(row.spans, keep.spans, keep.past_s, now)
        _cut(row.kept, keep.kept, keep.past_s, now)
        if keep.calls is not None:
            for call in row.calls[: -keep.calls]:
                self._calls.pop(call.call, None)
            del row.calls[: -keep.calls]
        if keep.tools is not None:
            for tool in row.tools[: -keep.tools]:
                self._tools.pop(tool.tool_call, None)
            del row.tools[: -keep.tools]


def _looks_like(here: Kept, begun: Kept | None) -> bool:
    if begun is None:
        return False
    seen = SEEN_SHARE * max(here.context_tokens, here.device_tokens + here.host_tokens)
    return all(abs(now - then) <= seen for now, then in zip(here[1:], begun[1:], strict=True))


def _cut(list_: list[Any], most: int | None, past_s: float | None, now: float) -> None:
    """Drop what is too much, and what was over (the next one had begun) before what can be travelled to."""
    if most is not None:
        del list_[:-most]
    if past_s is not None:
        begun = bisect_right(list_, now - past_s, key=itemgetter(0))
        del list_[: max(0, begun - 1)]
