"""The state of programs, calls and engines, and the only file that changes it.

A **call** walks through the phases of one table, ``TRANSITIONS``, keyed by (phase, event); a pair
that is absent raises ``IllegalEvent``: there is no silent detour.

    (arrives) -> WAITING -> SENT -> RUNNING -> DECODING -> (ended)

* WAITING: held at the gateway because its program has no seat.
* SENT: let through; queued in the engine. RUNNING: prefill began. DECODING: first token is out.
* A call may end from every phase. When its engine is lost it goes back to WAITING, since the
  gateway still holds it; whether to answer it with an error is the gateway's choice (CallAborted).

A **program** is *foreground* while it has a ``seat``: the engine that should hold its KV; else it is
*paused*. Seats change by decisions only (``seat``, ``unseat``). Between calls a program is in a gap;
it may have several calls at once (sub-requests), and is in a gap when it has none. While the policy
only watches, calls of paused programs go to engines too (``let_through``).

House rules: nothing outside this file writes the fields of ``program_state.py``; nothing in this file knows a
policy.
"""

from __future__ import annotations

from typing import Any

from agentsched.core import events as ev
from agentsched.core.engine_state import EngineState as EngineState
from agentsched.core.models import Models
from agentsched.core.program_state import Call as Call
from agentsched.core.program_state import Phase as Phase
from agentsched.core.program_state import Program as Program
from agentsched.core.program_state import RunningTool
from agentsched.graphs.predict import quarter


class IllegalEvent(Exception):
    """The host reported what cannot be: an unknown name, or a step out of order. State is unchanged."""


ENDED = None
TRANSITIONS: dict[tuple[Phase, type[ev.Event]], Phase | None] = {
    (Phase.SENT, ev.CallStarted): Phase.RUNNING,
    (Phase.RUNNING, ev.CallStarted): Phase.RUNNING,  # preempted before its first token, begun again
    (Phase.DECODING, ev.CallStarted): Phase.DECODING,  # preempted while decoding, begun again
    (Phase.RUNNING, ev.FirstToken): Phase.DECODING,
    (Phase.DECODING, ev.CallFinished): ENDED,
    (Phase.RUNNING, ev.CallFinished): ENDED,  # an empty answer has no first token
    (Phase.WAITING, ev.CallAborted): ENDED,
    (Phase.SENT, ev.CallAborted): ENDED,
    (Phase.RUNNING, ev.CallAborted): ENDED,
    (Phase.DECODING, ev.CallAborted): ENDED,
    (Phase.WAITING, ev.EngineLost): Phase.WAITING,
    (Phase.SENT, ev.EngineLost): Phase.WAITING,
    (Phase.RUNNING, ev.EngineLost): Phase.WAITING,
    (Phase.DECODING, ev.EngineLost): Phase.WAITING,
}


_ILLEGAL: Any = object()


class State(Models):
    """All of the above plus the learned models. Mutated by ``apply``, ``seat`` and ``unseat``."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: dict[str, Program] = {}
        self.calls: dict[str, Call] = {}
        self.engines: dict[str, EngineState] = {}
        self.seats: dict[str, dict[str, Program]] = {}  # engine -> its foreground programs
        self.queue: dict[str, Program] = {}  # programs with a call at the gateway and no seat
        self.hosts: dict[str, int] = {}  # attached hosts of tools -> memory for tools, bytes
        self.programs_seen = 0

    def apply(self, now: float, event: ev.AnyEvent) -> Program | None:
        """Change the state as the event says; the program that it is about, also if it was closed.

        Raises ``IllegalEvent``, and has changed nothing then.
        """
        subject = self._apply(now, event)
        if subject is not None:
            subject.heard_s = now
        return subject

    def _apply(self, now: float, event: ev.AnyEvent) -> Program | None:
        match event:
            case ev.CallArrived():
                return self._arrive(now, event)
            case ev.CallStarted() | ev.FirstToken() | ev.CallFinished() | ev.CallAborted():
                return self._advance(now, event)
            case ev.ProgramOpened():
                return self._open(now, event)
            case ev.ProgramAnnotated():
                return self._annotate(now, event)
            case ev.ProgramRestored():
                return self._restore(now, event)
            case ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                return self._tool(now, event)
            case ev.ProgramClosed():
                return self._close(event)
            case ev.EngineAttached():
                if event.engine in self.engines:
                    raise IllegalEvent(f"engine {event.engine!r} is attached already")
                self.engines[event.engine] = EngineState(
                    name=event.engine,
                    capacity_tokens=event.capacity_tokens,
                    free_tokens=event.capacity_tokens,
                    host_tokens=event.host_capacity_tokens,
                    host_tokens_per_s=event.host_tokens_per_s,
                    retention=event.retention,
                )
                self.seats[event.engine] = {}
            case ev.EngineLost():
                self._lose(event)
            case ev.HostAttached():
                self.hosts[event.host] = event.memory_bytes
            case ev.HostLost():
                self._lose_host(event)
            case ev.StepReport():
                self._report(event)
            case ev.PolicyEngaged() | ev.Woken():
                pass
        return None

    def program(self, name: str) -> Program:
        """The live program of that name. Raises ``IllegalEvent`` if there is none."""
        try:
            return self.programs[name]
        except KeyError:
            raise IllegalEvent(f"program {name!r} is not open") from None

    def engine(self, name: str) -> EngineState:
        """The attached engine of that name. Raises ``IllegalEvent`` if there is none."""
        try:
            return self.engines[name]
        except KeyError:
            raise IllegalEvent(f"engine {name!r} is not attached") from None

    def waiting(self) -> list[Program]:
        """Programs with a call at the gateway and no seat, in order of arrival."""
        return sorted(self.queue.values(), key=lambda p: p.order)

    def seated(self, engine: str) -> list[Program]:
        """The engine's foreground programs, in order of arrival."""
        return sorted(self.seats.get(engine, {}).values(), key=lambda p: p.order)

    def seat(self, program: Program, engine: str) -> None:
        """The program becomes foreground: its waiting calls go to the engine."""
        program.seat = program.home = engine
        self.seats[engine][program.name] = program
        self._let_through(program)

    def let_through(self, program: Program, engine: str) -> None:
        """The program's waiting calls go to the engine, but it has no seat there."""
        program.home = engine
        self._let_through(program)

    def _let_through(self, program: Program) -> None:
        self.queue.pop(program.name, None)
        for call in program.calls.values():
            if call.phase is Phase.WAITING:
                call.phase = Phase.SENT

    def unseat(self, program: Program, arriving: str | None = None) -> None:
        """The program is paused: calls in the engine go on; one that is arriving, and the next, wait."""
        if program.seat is not None:
            del self.seats[program.seat][program.name]
            program.seat = None
        if (call := program.calls.get(arriving or "")) is not None:
            call.phase, self.queue[program.name] = Phase.WAITING, program

    def _open(self, now: float, event: ev.ProgramOpened) -> Program:
        if event.program in self.programs:
            raise IllegalEvent(f"program {event.program!r} is open already")
        self.programs_seen = order = self.programs_seen + 1
        due_s = None if event.deadline_s is None else now + event.deadline_s
        program = Program(
            name=event.program,
            tenant=event.tenant,
            order=order,
            opened_s=now,
            weight=event.weight,
            priority=event.priority,
            due_s=due_s,
            host=event.host,
            parent=event.parent,
            expected_calls=event.expected_calls,
        )
        self.programs[event.program] = program
        self.opened(program, now)
        return program

    def _annotate(self, now: float, event: ev.ProgramAnnotated) -> Program:
        program = self.program(event.program)
        if event.expected_calls is not None:
            program.expected_calls = event.expected_calls
        if event.deadline_s is not None:
            program.due_s = now + event.deadline_s
        return program

    def _restore(self, now: float, event: ev.ProgramRestored) -> Program:
        program = self.program(event.program)
        if program.calls or program.calls_done:
            raise IllegalEvent(f"program {event.program!r} has made calls already")
        program.opened_s = now - event.open_s
        program.calls_done, program.began = event.calls_done, event.calls_done > 0
        program.first_prompt_tokens = event.first_prompt_tokens
        program.context_tokens, program.shared_tokens = event.context_tokens, event.shared_tokens
        program.tools.update({ref.tool_call: ref.tool for ref in event.asked})
        if program.calls_done:
            program.gap_key, program.gap_since_s = event.gap_key, now
            program.gap_is_retry = True  # how long nobody served it says nothing of its tool
            self.contexts.resume(
                program.name,
                calls_done=program.calls_done,
                tokens_now=program.context_tokens,
                first_prompt_tokens=program.first_prompt_tokens,
            )
        return program

    def _arrive(self, now: float, event: ev.CallArrived) -> Program:
        program = self.program(event.program)
        if event.call in self.calls:
            raise IllegalEvent(f"call {event.call!r} has arrived already")
        if program.gap_since_s is not None and not program.calls and not program.gap_is_retry:
            self.gaps.observe(program.gap_key, now - program.gap_since_s)
            self.returns.observe(program.awaited, returned=True)
        program.gap_since_s, program.gap_is_retry = None, False
        if program.killed_bytes:  # it did not start again
            program.peaks.append(program.killed_bytes)
            program.killed_bytes = 0
        for tool_call in event.answers:
            program.tools.pop(tool_call, None)
            if (tool := program.running.pop(tool_call, None)) is not None:
                self.progress.observe(tool.told.values(), now - tool.began_s)
        call = Call(event.call, event.program, now, event.prompt_tokens, event.max_output_tokens)
        if program.foreground:
            call.phase = Phase.SENT
        else:
            self.queue[program.name] = program
        program.calls[event.call] = self.calls[event.call] = call
        program.first_prompt_tokens = program.first_prompt_tokens or event.prompt_tokens
        return program

    def _advance(
        self, now: float, event: ev.CallStarted | ev.FirstToken | ev.CallFinished | ev.CallAborted
    ) -> Program:
        call = self.calls.get(event.call)
        if call is None:
            raise IllegalEvent(f"{type(event).__name__}: call {event.call!r} is not live")
        phase = TRANSITIONS.get((call.phase, type(event)), _ILLEGAL)
        if phase is _ILLEGAL:
            raise IllegalEvent(f"{type(event).__name__} of call {event.call!r} in phase {call.phase.name}")
        program = self.programs[call.program]
        if isinstance(event, ev.CallStarted):
            call.started_s = now
            if not program.began:
                call.first = True
                program.began, program.shared_tokens = True, event.cached_tokens
        if phase is not None:
            call.phase = phase
            return program
        del self.calls[event.call], program.calls[event.call]
        if self.queue and not program.waiting:
            self.queue.pop(program.name, None)
        if isinstance(event, ev.CallFinished):
            if call.first:  # counted now; at its start it was perhaps guessed
                program.shared_tokens = event.cached_tokens
            self._finished(program, event)
        elif program.in_gap:
            program.gap_is_retry, program.gap_key = True, ""
            if not program.calls_done:
                program.first_prompt_tokens = 0
        if program.in_gap:
            program.gap_since_s = now
        return program

    def _finished(self, program: Program, event: ev.CallFinished) -> None:
        program.calls_done += 1
        tokens = event.prompt_tokens + event.output_tokens
        # One small call beside a large context is a title or a summary; two are a context begun anew.
        program.context_shrank = 2 * tokens < program.context_tokens and not program.context_shrank
        if not program.context_shrank:
            program.context_tokens = tokens
        self.contexts.observe_call(
            program.name,
            calls_done=program.calls_done,
            tokens_now=program.context_tokens,
            first_prompt_tokens=program.first_prompt_tokens,
        )
        program.tools.update({ref.tool_call: ref.tool for ref in event.tool_calls})
        program.gap_key = event.tool_calls[0].tool if event.tool_calls else ""

    def _tool(self, now: float, event: ev.ToolStarted | ev.ToolProgressed | ev.ToolFinished) -> Program:
        program = self.program(event.program)
        match event:
            case ev.ToolStarted():
                key = f"{event.tool}:{event.command}" if event.command else event.tool
                program.tools[event.tool_call] = key
                program.running[event.tool_call] = RunningTool(
                    key, now, expected_bytes=event.expected_memory_bytes
                )
                if program.in_gap:
                    program.gap_key = key
            case ev.ToolFinished():
                program.tools.pop(event.tool_call, None)
                self._learn_tool(now, program, event)
            case ev.ToolProgressed():
                tool = program.running.get(event.tool_call)
                if tool is not None:
                    tool.memory_bytes = max(tool.memory_bytes, event.memory_bytes)
                    if event.done_fraction is not None:
                        told = (min(1.0, event.done_fraction), now - tool.began_s)
                        tool.told[quarter(told[0])] = told
        return program

    def _learn_tool(self, now: float, program: Program, event: ev.ToolFinished) -> None:
        tool = program.running.pop(event.tool_call, None)
        if tool is None:
            return
        peak_bytes = max(tool.memory_bytes, event.peak_memory_bytes)
        if event.exit_status == ev.KILLED:
            expected_bytes = program.killed_bytes or self.memory.peak_bytes(tool.key)
            # It would have needed more than it got. If it got less than expected, that says nothing new.
            program.killed_bytes = 2 * peak_bytes if peak_bytes >= expected_bytes else expected_bytes
        else:
            self.memory.observe(tool.key, peak_bytes)
            self.progress.observe(tool.told.values(), now - tool.began_s)
            program.peaks.append(peak_bytes)
            program.killed_bytes = 0

    def _lose_host(self, event: ev.HostLost) -> None:
        if self.hosts.pop(event.host, None) is None:
            raise IllegalEvent(f"host {event.host!r} is not attached")
        for program in self.programs.values():
            if program.host == event.host:
                for tool_call in program.running:
                    program.tools.pop(tool_call, None)
                program.running.clear()
                program.killed_bytes = 0

    def _close(self, event: ev.ProgramClosed) -> Program:
        program = self.program(event.program)
        if program.calls:
            raise IllegalEvent(f"program {event.program!r} has live calls: end them before closing it")
        self.closed(program, expired=event.expired)
        del self.programs[event.program]
        self.unseat(program)
        return program

    def _lose(self, event: ev.EngineLost) -> None:
        self.engine(event.engine)
        del self.engines[event.engine], self.seats[event.engine]
        for program in self.programs.values():
            if program.home == event.engine:
                program.home, program.held_tokens, program.host_held_tokens = None, 0, 0
            if program.seat == event.engine:
                program.seat = None
                for call in program.calls.values():
                    call.phase = TRANSITIONS[call.phase, ev.EngineLost] or call.phase
                if program.calls:
                    self.queue[program.name] = program

    def _report(self, event: ev.StepReport) -> None:
        engine = self.engine(event.engine)
        engine.free_tokens, engine.running, engine.queued = event.free_tokens, event.running, event.queued
        engine.prefilled_tokens += event.prefilled_tokens
        engine.recomputed_tokens += event.recomputed_tokens
        engine.busy_s += event.step_s
        engine.observe_prefill(event.prefilled_tokens, event.step_s)
        if event.snapshot:
            for program in self.programs.values():
                if program.home == event.engine:
                    program.held_tokens = program.host_held_tokens = 0
        for held in event.held:
            if (known := self.programs.get(held.program)) is None:
                continue
            if event.snapshot and known.home is None:  # the engine computed it for an earlier core
                known.home = event.engine
            if known.home == event.engine:
                known.held_tokens, known.host_held_tokens = held.device_tokens, held.host_tokens

    def check_invariants(self) -> None:
        """Every call belongs to a program and the other way round; seats are of attached engines."""
        owned = {name for program in self.programs.values() for name in program.calls}
        assert owned == set(self.calls), "calls and programs disagree"
        seated = {name: engine for engine, seats in self.seats.items() for name in seats}
        assert seated == {p.name: p.seat for p in self.programs.values() if p.foreground}, "seats disagree"
        for program in self.programs.values():
            assert program.seat is None or program.seat in self.engines, f"{program.name}: seat is gone"
            queued = not program.foreground and program.waiting
            assert (self.queue.get(program.name) is program) is queued, f"{program.name}: queue is wrong"
            waiting = [call.name for call in program.calls.values() if call.phase is Phase.WAITING]
            assert not (program.foreground and waiting), f"{program.name}: seated, yet {waiting} wait"
            assert (program.gap_since_s is None) or program.in_gap, f"{program.name}: gap with live calls"
