"""Follows programs, their calls and their tools from events and decisions.

It is shown a recent part of what happened: what it does not know the beginning of is taken as it comes, and
put right from the core's own state (``Following.settle``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.program_state import Call, Phase, Program
from agentsched.core.state import State
from agentsched.daemon.dashboard.followed import Followed
from agentsched.daemon.dashboard.rows import CallRow, Doing, Keep, ProgramRow, ToolRow

_PHASES: dict[Phase, Doing] = {
    Phase.WAITING: "gateway",
    Phase.SENT: "queue",
    Phase.RUNNING: "prefill",
    Phase.DECODING: "decode",
}
PACE_GAIN = 0.05


class Following:
    """All programs, live ones and those that ended lately. ``pace_s``: seconds from call to call."""

    def __init__(self, keep: Keep) -> None:
        self.programs: dict[str, Followed] = {}
        self.pace_s: float | None = None
        self._keep = keep
        self._owner: dict[str, Followed] = {}  # of live calls
        self._changed: dict[str, None] = {}

    def get(self, program: str) -> Followed | None:
        """The program, which is about to change; None if it is not known."""
        found = self.programs.get(program)
        if found is not None:
            self._changed[program] = None
        return found

    @property
    def any_changed(self) -> bool:
        return bool(self._changed)

    def changed(self) -> Iterator[Followed]:
        """Who changed since this was last asked."""
        names, self._changed = self._changed, {}
        return (found for name in names if (found := self.programs.get(name)) is not None)

    def forget(self, now: float) -> list[str]:
        """Programs that ended too long ago are shown no more; their names."""
        if self._keep.past_s is None:
            return []
        ended_before_s = now - self._keep.past_s
        gone = [
            name
            for name, known in self.programs.items()
            if known.row.ended_s is not None and known.row.ended_s < ended_before_s
        ]
        for name in gone:
            del self.programs[name]
        return gone

    def trim(self, followed: Followed, now: float) -> None:
        followed.trim(self._keep, now)

    # Events

    def event(self, now: float, event: ev.AnyEvent) -> Followed | None:
        """Follow one event; the program that it is about."""
        match event:
            case ev.ProgramOpened():
                return self._open(now, event)
            case ev.ProgramAnnotated() | ev.ProgramRestored() | ev.ProgramClosed():
                subject = self._known(event.program, now)
                self._program(now, event, subject)
            case ev.CallArrived():
                subject = self._known(event.program, now)
                self._arrive(now, event, subject)
            case ev.CallStarted() | ev.FirstToken() | ev.CallFinished() | ev.CallAborted():
                owner = self._owner.get(event.call)
                if owner is None:
                    return None
                subject = owner
                self._advance(now, event, subject)
            case ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                subject = self._known(event.program, now)
                self._tool(now, event, subject)
            case ev.EngineLost():
                self._lose(now, event.engine)
                return None
            case _:
                return None
        self._changed[subject.row.program] = None
        subject.turn(now)
        return subject

    def decision(self, now: float, event: ev.AnyEvent, said: de.AnyDecision) -> None:
        """What a decision of the event changes about its program."""
        match said:
            case de.Admit() | de.Pass():
                subject = self._known(said.program, now)
                subject.row.home = said.engine
                subject.row.seat = None if isinstance(said, de.Pass) else said.engine
                subject.row.why, subject.row.waits, subject.told_wait = said.reason, "", ""
                for call, doing in subject.live.items():
                    if doing == "gateway":
                        self._sent(now, subject, call)
            case de.Pause():
                subject = self._known(said.program, now)
                subject.row.seat, subject.row.why = None, said.reason
                if isinstance(event, ev.CallArrived) and event.call in subject.live:
                    subject.live[event.call] = "gateway"
                    if (row := subject.call(event.call)) is not None:
                        row.sent_s = None
            case de.Retain() if (found := self.programs.get(said.program)) is not None:
                found.order = said
                return
            case de.Release() if (found := self.programs.get(said.program)) is not None:
                found.order = None
                return
            case _:
                return
        subject.turn(now)

    def held(self, now: float, held: ev.Held) -> tuple[Followed, int, int] | None:
        """A report on its KV: the program, and by how many tokens the device and host parts grew."""
        subject = self.get(held.program)
        if subject is None or subject.row.ended_s is not None:
            return None
        device = held.device_tokens - subject.device_tokens
        host = held.host_tokens - subject.host_tokens
        subject.device_tokens, subject.host_tokens = held.device_tokens, held.host_tokens
        subject.keep(now)
        return subject, device, host

    def _known(self, program: str, now: float) -> Followed:
        found = self.get(program)
        if found is None:
            found = self.programs[program] = Followed(
                ProgramRow(program=program, tenant="", opened_s=now, spans=[], kept=[], calls=[], tools=[])
            )
            self._changed[program] = None
        return found

    def _open(self, now: float, event: ev.ProgramOpened) -> Followed:
        self.programs.pop(event.program, None)  # one of that name had ended
        subject = self._known(event.program, now)
        row = subject.row
        row.tenant, row.parent, row.host = event.tenant, event.parent, event.host
        row.expected_calls = event.expected_calls
        row.due_s = None if event.deadline_s is None else now + event.deadline_s
        subject.turn(now)
        return subject

    def _program(
        self,
        now: float,
        event: ev.ProgramAnnotated | ev.ProgramRestored | ev.ProgramClosed,
        subject: Followed,
    ) -> None:
        row = subject.row
        match event:
            case ev.ProgramAnnotated():
                if event.expected_calls is not None:
                    row.expected_calls = event.expected_calls
                if event.deadline_s is not None:
                    row.due_s = now + event.deadline_s
            case ev.ProgramRestored():
                row.opened_s, row.calls_done = now - event.open_s, event.calls_done
                subject.context_tokens = event.context_tokens
                for ref in event.asked:
                    subject.add_tool(ToolRow(tool_call=ref.tool_call, tool=ref.tool, began_s=now))
            case ev.ProgramClosed():
                row.ended_s, row.seat, row.waits = now, None, ""
                for tool_call in list(subject.open):
                    subject.answered(now, tool_call)

    def _arrive(self, now: float, event: ev.CallArrived, subject: Followed) -> None:
        row = subject.row
        if row.calls and (last_s := row.calls[-1].arrived_s) < now:
            between_s = now - last_s
            self.pace_s = between_s if self.pace_s is None else self.pace_s
            self.pace_s += (between_s - self.pace_s) * PACE_GAIN
        for tool_call in event.answers:
            subject.answered(now, tool_call)
        self._owner[event.call] = subject
        subject.live[event.call] = "gateway" if row.seat is None else "queue"
        subject.add_call(
            CallRow(
                call=event.call,
                arrived_s=now,
                prompt_tokens=event.prompt_tokens,
                sent_s=None if row.seat is None else now,
            )
        )
        subject.context_tokens = max(subject.context_tokens, event.prompt_tokens)
        subject.keep(now)

    def _sent(self, now: float, subject: Followed, call: str) -> None:
        subject.live[call] = "queue"
        if (row := subject.call(call)) is not None:
            row.sent_s = now

    def _advance(
        self,
        now: float,
        event: ev.CallStarted | ev.FirstToken | ev.CallFinished | ev.CallAborted,
        subject: Followed,
    ) -> None:
        row = subject.call(event.call)
        match event:
            case ev.CallStarted():
                subject.live[event.call] = "prefill"
                if row is not None:
                    row.started_s, row.cached_tokens = now, event.cached_tokens
                    row.sent_s = now if row.sent_s is None else row.sent_s
            case ev.FirstToken():
                subject.live[event.call] = "decode"
                if row is not None:
                    row.first_token_s = now
            case ev.CallFinished() | ev.CallAborted():
                self._owner.pop(event.call, None)
                subject.live.pop(event.call, None)
                subject.row.waits = ""
                if row is not None:
                    row.ended_s = now
                self._ended(now, event, subject, row)

    def _ended(
        self, now: float, event: ev.CallFinished | ev.CallAborted, subject: Followed, row: CallRow | None
    ) -> None:
        if isinstance(event, ev.CallAborted):
            if row is not None:
                row.failed = event.reason
            return
        subject.row.calls_done += 1
        subject.context_tokens = event.prompt_tokens + event.output_tokens
        subject.keep(now)
        for ref in event.tool_calls:
            subject.add_tool(ToolRow(tool_call=ref.tool_call, tool=ref.tool, began_s=now))
        if row is not None:
            row.prompt_tokens, row.cached_tokens = event.prompt_tokens, event.cached_tokens
            row.output_tokens, row.recomputed_tokens = event.output_tokens, event.recomputed_tokens
            row.asks = tuple(ref.tool_call for ref in event.tool_calls)

    def _tool(
        self, now: float, event: ev.ToolStarted | ev.ToolProgressed | ev.ToolFinished, subject: Followed
    ) -> None:
        row = subject.tool(event.tool_call)
        if row is None:
            if not isinstance(event, ev.ToolStarted):
                return  # of before what was seen
            row = subject.add_tool(ToolRow(tool_call=event.tool_call, tool=event.tool, began_s=now))
        row.told = True
        match event:
            case ev.ToolStarted():
                row.tool, row.command, row.began_s = event.tool, event.command, now
                row.expected_bytes = event.expected_memory_bytes
                subject.open[event.tool_call] = row
            case ev.ToolProgressed():
                if row.cpu_s is not None and now > row.heard_s:
                    row.cores = max(0.0, event.cpu_s - row.cpu_s) / (now - row.heard_s)
                row.cpu_s = max(row.cpu_s or 0.0, event.cpu_s)
                row.memory_bytes, row.heard_s = event.memory_bytes, now
                if event.done_fraction is not None:
                    row.done_fraction = min(1.0, event.done_fraction)
            case ev.ToolFinished():
                subject.open.pop(event.tool_call, None)
                row.ended_s, row.exit_status, row.cores = now, event.exit_status, None
                row.cpu_s, row.memory_bytes = event.cpu_s, event.peak_memory_bytes

    def _lose(self, now: float, engine: str) -> None:
        for subject in self.programs.values():
            row = subject.row
            if row.home != engine or row.ended_s is not None:
                continue
            self._changed[row.program] = None
            row.seat = row.home = subject.order = None
            subject.device_tokens = subject.host_tokens = 0
            subject.live = dict.fromkeys(subject.live, "gateway")
            subject.keep(now)
            subject.turn(now)

    # The core's own state

    def settle(self, state: State, now: float, on_host: Mapping[str, int]) -> None:
        """Make it what the core knows. ``on_host``: tokens in host memory, which the core does not keep."""
        for name, known in list(self.programs.items()):
            if name not in state.programs and (known.row.ended_s is None or not known.row.tenant):
                del self.programs[name]
        for program in state.programs.values():
            self._settle(program, now, on_host.get(program.name, 0))

    def _settle(self, program: Program, now: float, host_tokens: int) -> None:
        subject = self._known(program.name, now)
        row = subject.row
        row.tenant, row.parent, row.host = program.tenant, program.parent, program.host
        row.opened_s, row.due_s = program.opened_s, program.due_s
        row.seat, row.home = program.seat, program.home
        row.calls_done, row.expected_calls = program.calls_done, program.expected_calls
        subject.context_tokens = program.expected_context_tokens
        subject.device_tokens, subject.host_tokens = program.held_tokens, host_tokens
        subject.live = {call.name: _PHASES[call.phase] for call in program.calls.values()}
        since_s = program.gap_since_s if program.gap_since_s is not None else now
        for call in program.calls.values():
            since_s = min(since_s, self._settle_call(subject, call))
        for tool_call, key in program.tools.items():
            if subject.tool(tool_call) is None:
                running = program.running.get(tool_call)
                began_s = since_s if running is None else running.began_s
                tool, _, command = key.partition(":")
                subject.add_tool(
                    ToolRow(
                        tool_call=tool_call,
                        tool=tool,
                        command=command,
                        began_s=began_s,
                        told=running is not None,
                    )
                )
        subject.open = {name: tool for name, tool in subject.open.items() if name in program.tools}
        subject.keep(now if row.kept else since_s)
        subject.turn(now if row.spans else since_s)

    def _settle_call(self, subject: Followed, call: Call) -> float:
        self._owner[call.name] = subject
        if subject.call(call.name) is None:
            subject.add_call(
                CallRow(
                    call=call.name,
                    arrived_s=call.arrived_s,
                    prompt_tokens=call.prompt_tokens,
                    started_s=call.started_s,
                )
            )
        return call.arrived_s if call.started_s is None else call.started_s
