"""One picture of a daemon in a terminal, from the dashboard's view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agentsched.daemon.dashboard.rows import Doing, EngineRow, Item, Kept, ProgramRow, ToolRow, View
from agentsched.daemon.dashboard.words import seconds, tokens

ORDERS = ("waiting first", "by KV", "by arrival")
STYLES: dict[Doing, str] = {
    "gateway": "dark_orange",
    "queue": "yellow",
    "prefill": "blue",
    "decode": "cyan",
    "tool": "green",
    "agent": "bright_black",
    "ended": "bright_black",
}
NAMES: dict[Doing, str] = {
    "gateway": "wait for a place",
    "queue": "queued",
    "prefill": "read",
    "decode": "write",
    "tool": "in tools",
    "agent": "agent busy",
    "ended": "ended",
}
OFTEN = frozenset({"rank", "retain", "release", "terms"})
DECISIONS = 8
NONE = Kept(0.0, 0, 0, 0)


@dataclass
class Screen:
    """How it is looked at. ``lost``: why nothing new comes."""

    order: str = ORDERS[0]
    first: int = 0
    held: bool = False
    lost: str = ""

    def render(self, view: View, width: int, height: int | None) -> RenderableType:
        """``height`` lines; None: as many as it takes."""
        engines = [line for row in view.engines if row.attached for line in _engine(row, width)]
        decisions = [_decision(view, item, width) for item in _last(view.items)]
        head: list[RenderableType] = [self._title(view, width), *engines, _counts(view)]
        taken = len(head) + len(decisions) + 3
        rows = sorted(view.programs, key=self._key)
        if height is not None:
            room = max(1, height - taken)
            self.first = max(0, min(self.first, len(rows) - room))
            rows = rows[self.first : self.first + room]
        foot = Text("q quit  s order  j k scroll  space hold", style="bright_black")
        return Group(*head, _programs(view, rows, width), *decisions, foot)

    def _title(self, view: View, width: int) -> Text:
        title = Text("agentsched", style="bold", no_wrap=True, overflow="ellipsis")
        title.append(
            f"  policy {view.policy}{'' if view.engaged else ', which only watches'}", style="default"
        )
        if view.scope is not None:
            title.append(f"  tenant {view.scope}")
        title.append(f"  {len(view.programs)} programs, {self.order}", style="bright_black")
        if self.held:
            title.append("  held", style="yellow")
        if self.lost:
            title.append(f"  {self.lost}", style="red")
        title.truncate(width)
        return title

    def _key(self, row: ProgramRow) -> tuple[float, ...]:
        waits = {"gateway": 0, "queue": 1}.get(doing(row), 2)
        if self.order == ORDERS[1]:
            return (-kept(row).device_tokens, row.opened_s)
        return (row.opened_s,) if self.order == ORDERS[2] else (waits, row.opened_s)


def doing(row: ProgramRow) -> Doing:
    return row.spans[-1].doing if row.spans else "agent"


def kept(row: ProgramRow) -> Kept:
    return row.kept[-1] if row.kept else NONE


def sentence(row: ProgramRow, now: float) -> str:
    """What it does, in one line."""
    since_s = row.spans[-1].start_s if row.spans else row.opened_s
    lasted = seconds(max(0.0, now - since_s))
    match doing(row):
        case "gateway":
            return f"waits {lasted} for a place: {row.waits or 'its turn has not come'}"
        case "queue":
            return f"queued in {row.home or 'the engine'} for {lasted}"
        case "prefill":
            return f"reads its prompt, {lasted}"
        case "decode":
            return f"writes its answer, {lasted}"
        case "tool" if row.tools:
            return _tools(row.tools, now)
        case "tool":
            return f"runs a tool, {lasted}"
        case _:
            return f"its agent is busy, {lasted}"


def _tools(tools: list[ToolRow], now: float) -> str:
    tool = tools[0]
    command = f" {tool.command}" if tool.command and tool.command != tool.tool else ""
    said = f"runs {tool.tool}{command} for {seconds(max(0.0, now - tool.began_s))}"
    if tool.done_fraction is not None:
        said += f", {tool.done_fraction:.0%} done"
    if tool.cores is not None:
        said += f", {tool.cores:.1f} cores"
    if tool.memory_bytes:
        said += f", {tool.memory_bytes / 1e6:,.0f} MB"
    return said + (f", and {len(tools) - 1} more" if len(tools) > 1 else "")


def _engine(row: EngineRow, width: int) -> Iterable[Text]:
    if not row.gauges:
        return
    gauge = row.gauges[-1]
    wide = max(10, min(40, width - 100))
    most = max(row.capacity_tokens, gauge.peak_tokens or 0)
    used = round(wide * gauge.used_tokens / most)
    peak = round(wide * min(most, gauge.peak_tokens or 0) / most)
    bar = Text(f"{row.engine[:10]:<10} ", no_wrap=True, overflow="ellipsis")
    bar.append("█" * used, style="magenta")
    bar.append("▒" * max(0, peak - used), style="magenta")
    bar.append("·" * (wide - max(used, peak)), style="bright_black")
    bar.append(f" {tokens(gauge.used_tokens)} of {tokens(row.capacity_tokens)} in use")
    if gauge.peak_tokens is not None:
        limit = gauge.bound_tokens or row.room_tokens or row.capacity_tokens
        over = gauge.peak_tokens - limit
        style = (
            "red" if (gauge.need_tokens or 0) > (row.room_tokens or 0) else "yellow" if over > 0 else "green"
        )
        spare = f"{tokens(-over)} to spare" if over <= 0 else f"{tokens(over)} over: nobody new is let in"
        bar.append(f", peak {tokens(gauge.peak_tokens)} of {tokens(limit)} allowed, ")
        bar.append(spare, style=style)
    bar.truncate(width)
    yield bar


def _counts(view: View) -> Text:
    counts = Counter(doing(row) for row in view.programs)
    line = Text(no_wrap=True, overflow="ellipsis")
    for kind, name in NAMES.items():
        if kind != "ended":
            line.append(f"{counts[kind]} ", style=f"bold {STYLES[kind]}")
            line.append(f"{name}   ")
    return line


def _programs(view: View, rows: list[ProgramRow], width: int) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="bright_black")
    table.add_column("program", no_wrap=True, max_width=max(12, width // 4))
    if any(row.tenant != "default" for row in view.programs):
        table.add_column("tenant", no_wrap=True, max_width=14)
    table.add_column("KV", justify="right", no_wrap=True)
    table.add_column("host", justify="right", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    table.add_column("now", no_wrap=True, ratio=1)
    tenants = len(table.columns) == 6
    for row in rows:
        here = kept(row)
        cells: list[str | Text] = [row.program.rpartition("//")[2], row.tenant] if tenants else [row.program]
        cells += [tokens(here.device_tokens), tokens(here.host_tokens) if here.host_tokens else ""]
        cells += [str(row.calls_done), Text(sentence(row, view.at_s), style=STYLES[doing(row)])]
        table.add_row(*cells)
    if not rows:
        table.add_row(Text("no program is open", style="bright_black"))
    return table


def _last(items: list[Item]) -> list[Item]:
    return [item for item in items if item.kind not in OFTEN][-DECISIONS:]


def _decision(view: View, item: Item, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"-{seconds(max(0.0, view.at_s - item.at_s)):<8} ", style="bright_black")
    line.append(f"{item.program or item.engine} ", style="bold")
    line.append(item.text)
    line.truncate(width)
    return line
