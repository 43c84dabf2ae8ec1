"""What the daemon itself knows of live programs: for people and for metrics.

A watcher of the same events and decisions that the core handles; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from agentsched.core import decisions as de
from agentsched.core import events as ev


@dataclass(slots=True)
class ProgramView:
    """One open program. Times are monotonic seconds, tokens as last reported; ``number`` counts openings."""

    program: str
    tenant: str
    number: int
    opened_s: float
    active_s: float
    parent: str = ""
    expected_calls: int = 0
    due_s: float | None = None
    engine: str | None = None
    calls: dict[str, str] = field(default_factory=dict)  # live call -> waiting, sent, running, decoding
    tools: dict[str, float] = field(default_factory=dict)  # running tool call -> when last heard of
    calls_done: int = 0
    context_tokens: int = 0
    held_device_tokens: int = 0
    held_host_tokens: int = 0
    why: str = ""

    @property
    def state(self) -> Literal["waiting", "running", "tool", "idle"]:
        """What it does now."""
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
        self._opened = 0

    def observe(self, now: float, event: ev.AnyEvent, decided: Iterable[de.AnyDecision]) -> None:
        """Follow one event that the core has handled, and what it decided."""
        self._follow(now, event)
        for decision in decided:
            if isinstance(decision, de.Admit | de.Pass):
                self._place(decision.program, decision.engine, decision.reason)
            elif isinstance(decision, de.Pause):
                self._place(decision.program, None, decision.reason)

    def of(self, tenant: str) -> list[ProgramView]:
        """The tenant's, in order of opening."""
        return [view for view in self.open.values() if view.tenant == tenant]

    def _place(self, program: str, engine: str | None, reason: str) -> None:
        if (view := self.open.get(program)) is None:
            return
        view.engine, view.why = engine, reason
        if engine is not None:
            view.calls.update({call: "sent" for call, phase in view.calls.items() if phase == "waiting"})

    def _follow(self, now: float, event: ev.AnyEvent) -> None:
        match event:
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
            case ev.ProgramOpened():
                self._open(now, event)
            case ev.ProgramAnnotated():
                view = self.open[event.program]
                view.active_s = now
                if event.expected_calls is not None:
                    view.expected_calls = event.expected_calls
                if event.deadline_s is not None:
                    view.due_s = now + event.deadline_s
            case ev.ProgramRestored():
                view = self.open[event.program]  # for its idle time only the daemon's own counts
                view.opened_s, view.calls_done = now - event.open_s, event.calls_done
                view.context_tokens = event.context_tokens
            case ev.ProgramClosed():
                self.open.pop(event.program, None)
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

    def _open(self, now: float, event: ev.ProgramOpened) -> None:
        self._opened += 1
        self.open[event.program] = ProgramView(
            program=event.program,
            tenant=event.tenant,
            number=self._opened,
            opened_s=now,
            active_s=now,
            parent=event.parent,
            expected_calls=event.expected_calls,
            due_s=None if event.deadline_s is None else now + event.deadline_s,
        )

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
