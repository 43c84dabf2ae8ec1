"""A host whose tool calls want memory, in virtual time: what a kernel would do of a controller's actions."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentsched.core.tool_control import (
    Action,
    Call,
    Cap,
    Freeze,
    HostSeen,
    Kill,
    Protect,
    Seen,
    Terms,
    Thaw,
    ToolControl,
    Weigh,
)

MIB = 1 << 20
STEP_S = 0.05


@dataclass
class Tool:
    """Takes ``peak_bytes`` at ``rate`` bytes a second, then computes for ``work_s``, then ends."""

    call: Call
    peak_bytes: int
    rate: float
    work_s: float
    held_bytes: int = 0
    cap_bytes: int | None = None
    frozen: bool = False
    stopped_s: float = 0.0
    longest_stop_s: float = 0.0
    ended: str = ""


@dataclass
class ToyHost:
    """``others_bytes``: held by agents and whatever is no tool call. ``slack``: caps hold only
    when they are exceeded by this share."""

    total_bytes: int
    others_bytes: int = 0
    slack: float = 0.0
    terms: Terms = field(default_factory=Terms)
    overrun_bytes: int = 0

    def __post_init__(self) -> None:
        self.control = ToolControl(self.terms)
        self.now = 0.0
        self.tools: dict[str, Tool] = {}
        self.actions: list[Action] = []
        self.look_below_bytes = 0

    @property
    def free_bytes(self) -> int:
        held = sum(tool.held_bytes for tool in self.tools.values())
        return self.total_bytes - self.others_bytes - held

    def start(self, tool: Tool) -> None:
        self.tools[tool.call.tool_call] = tool
        self._do(self.control.began(self.now, tool.call))

    def run(self, until_s: float) -> None:
        """Until that time, or until no tool is left."""
        while self.now < until_s and self.live:
            self.step()

    @property
    def live(self) -> list[Tool]:
        return [tool for tool in self.tools.values() if not tool.ended]

    def step(self) -> None:
        self.now += STEP_S
        hit = False
        for tool in self.live:
            hit |= self._grow(tool)
        if hit or self.free_bytes < self.look_below_bytes or self.now >= self.control.next_look_s:
            self.look()

    def look(self) -> None:
        host = HostSeen(total_bytes=self.total_bytes, free_bytes=max(0, self.free_bytes))
        everybody = self.control.needs_usage(host)
        seen = {
            tool.call.tool_call: Seen(memory_bytes=tool.held_bytes, stopped=self._stopped(tool))
            for tool in self.live
            if everybody or tool.call.tool_call == self.control.first
        }
        self._do(self.control.looked(self.now, host, seen))
        self.control.check_invariants()
        growth = self.control.until_tight_bytes(host)
        self.look_below_bytes = self.free_bytes - growth if growth else 0

    def _stopped(self, tool: Tool) -> bool:
        return (
            tool.cap_bytes is not None
            and tool.held_bytes >= min(tool.cap_bytes, tool.peak_bytes)
            and (tool.held_bytes < tool.peak_bytes)
        )

    def _grow(self, tool: Tool) -> bool:
        """Whether it hit its cap just now, or ended."""
        before, held = self._stopped(tool), tool.held_bytes
        if not tool.frozen:
            room = tool.peak_bytes if tool.cap_bytes is None else int(tool.cap_bytes * (1 + self.slack))
            if tool.held_bytes < tool.peak_bytes:
                tool.held_bytes = min(
                    tool.peak_bytes, max(tool.held_bytes, room), tool.held_bytes + int(tool.rate * STEP_S)
                )
            else:
                tool.work_s -= STEP_S
        self.overrun_bytes = max(self.overrun_bytes, -self.free_bytes)
        if tool.held_bytes == held and (self._stopped(tool) or tool.frozen):
            tool.stopped_s += STEP_S
            tool.longest_stop_s = max(tool.longest_stop_s, tool.stopped_s)
        else:
            tool.stopped_s = 0.0
        if tool.work_s <= 0:
            self._end(tool, "done")
            return True
        return self._stopped(tool) and not before

    def _end(self, tool: Tool, how: str) -> None:
        tool.ended = how
        peak, tool.held_bytes = tool.held_bytes, 0
        self._do(self.control.ended(self.now, tool.call.tool_call, peak, by_itself=how == "done"))

    def _do(self, actions: list[Action]) -> None:
        self.actions += actions
        for action in actions:
            match action:
                case Cap():
                    self.tools[action.tool_call].cap_bytes = action.limit_bytes
                case Freeze():
                    self.tools[action.tool_call].frozen = True
                case Thaw():
                    self.tools[action.tool_call].frozen = False
                case Kill():
                    self._end(self.tools[action.tool_call], action.why.value)
                case Protect() | Weigh():
                    pass
