"""What the daemon itself knows of live programs: for people, for metrics, and to see who is idle.

A watcher of the same events and decisions that the core handles; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agentsched.core import decisions as de
from agentsched.core import events as ev

SILENT_TOOL_FACTOR = 4
"""A tool that said nothing for so many idle limits is taken for dead: its reporter is gone."""


@dataclass(slots=True)
class ProgramView:
    """One open program. Times are monotonic seconds, tokens as last reported."""

    program: str
    tenant: str
    opened_s: float
    active_s: float
    parent: str = ""
    engine: str | None = None
    calls: dict[str, str] = field(default_factory=dict)  # live call -> waiting, sent, running, decoding
    tools: dict[str, float] = field(default_factory=dict)  # running tool call -> when last heard of
    calls_done: int = 0
    context_tokens: int = 0
    held_device_tokens: int = 0
    held_host_tokens: int = 0
    why: str = ""

    @property
    def state(self) -> str:
        """What it does now: ``waiting``, ``running``, ``tool`` or ``idle``."""
        if any(phase != "waiting" for phase in self.calls.values()):
            return "running"
        if self.calls:
            return "waiting"
        return "tool" if self.tools else "idle"


class Programs:
    """All open programs by name. Mutated by ``observe`` only."""

    def __init__(self) -> None:
        self.open: dict[str, ProgramView] = {}
        self._calls: dict[str, ProgramView] = {}

    def observe(self, now: float, event: ev.AnyEvent, decided: Iterable[de.AnyDecision]) -> None:
        """Follow one event that the core has handled, and what it decided."""
        self._follow(now, event)
        for decision in decided:
            if isinstance(decision, de.Admit | de.Pass | de.Migrate):
                self._place(decision.program, decision.engine, decision.reason)
            elif isinstance(decision, de.Pause):
                self._place(decision.program, None, decision.reason)

    def idle(self, now: float, limit_s: float) -> list[str]:
        """Programs that for ``limit_s`` have had no call, no running tool and no word from anyone."""
        found = []
        for view in self.open.values():
            heard_s = max(
                [view.active_s, *(s + (SILENT_TOOL_FACTOR - 1) * limit_s for s in view.tools.values())]
            )
            if not view.calls and now - heard_s >= limit_s:
                found.append(view.program)
        return found

    def _place(self, program: str, engine: str | None, reason: str) -> None:
        if (view := self.open.get(program)) is None:
            return
        view.engine, view.why = engine, reason
        if engine is not None:
            view.calls.update({call: "sent" for call, phase in view.calls.items() if phase == "waiting"})

    def _follow(self, now: float, event: ev.AnyEvent) -> None:
        match event:
            case ev.ProgramOpened():
                self.open[event.program] = ProgramView(event.program, event.tenant, now, now, event.parent)
            case ev.ProgramRestored():
                view = self.open[event.program]  # for its idle time only the daemon's own counts
                view.opened_s, view.calls_done = now - event.open_s, event.calls_done
                view.context_tokens = event.context_tokens
            case ev.ProgramClosed():
                self.open.pop(event.program, None)
            case ev.CallArrived():
                view = self.open[event.program]
                view.calls[event.call] = "sent" if view.engine else "waiting"
                view.active_s = now
                self._calls[event.call] = view
                for tool_call in event.answers:
                    view.tools.pop(tool_call, None)
            case ev.CallStarted() | ev.FirstToken():
                phase = "running" if isinstance(event, ev.CallStarted) else "decoding"
                self._calls[event.call].calls[event.call] = phase
            case ev.CallFinished() | ev.CallAborted():
                self._end(now, event)
            case ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                view = self.open[event.program]
                view.active_s = now
                if isinstance(event, ev.ToolFinished):
                    view.tools.pop(event.tool_call, None)
                else:
                    view.tools[event.tool_call] = now
            case ev.EngineLost():
                self._lose(event.engine)
            case ev.StepReport():
                self._held(event)
            case ev.EngineAttached() | ev.HostAttached() | ev.HostLost() | ev.Woken():
                pass

    def _end(self, now: float, event: ev.CallFinished | ev.CallAborted) -> None:
        view = self._calls.pop(event.call)
        del view.calls[event.call]
        view.active_s = now
        if isinstance(event, ev.CallFinished):
            view.calls_done += 1
            view.context_tokens = event.prompt_tokens + event.output_tokens

    def _lose(self, engine: str) -> None:
        for view in self.open.values():
            if view.engine == engine:
                view.engine, view.why = None, "its engine is gone"
                view.held_device_tokens = view.held_host_tokens = 0
                view.calls.update(dict.fromkeys(view.calls, "waiting"))

    def _held(self, report: ev.StepReport) -> None:
        if report.snapshot:
            for view in self.open.values():
                if view.engine == report.engine:
                    view.held_device_tokens = view.held_host_tokens = 0
        for held in report.held:
            if (known := self.open.get(held.program)) is not None:
                known.held_device_tokens, known.held_host_tokens = held.device_tokens, held.host_tokens
