"""What each engine has to do, kept up to date one program at a time.

Policies for many engines ask at almost every event which engine is least loaded. Counting all
programs each time would make every decision as slow as there are programs, so this ledger counts a
program anew only when an event is about it, and whenever a policy moves it (``recount``).
"""

from __future__ import annotations

from dataclasses import dataclass

from agentsched.core import events as ev
from agentsched.core.state import Phase, Program, State


@dataclass(slots=True)
class EngineLoad:
    """One engine. ``tokens`` are the contexts of its foreground programs, in a gap or not."""

    capacity_tokens: int
    max_running: int
    idle_since_s: float | None
    programs: int = 0
    tokens: int = 0
    queued: int = 0  # calls let through that have not begun
    running: int = 0

    @property
    def calls(self) -> int:
        return self.queued + self.running

    @property
    def share(self) -> float:
        """Live calls over the engine's batch slots."""
        return self.calls / self.max_running

    @property
    def kv_share(self) -> float:
        """Contexts of its foreground programs over its KV capacity."""
        return self.tokens / self.capacity_tokens


@dataclass(frozen=True, slots=True)
class _Counted:
    """What one program adds to one engine."""

    engine: str
    programs: int
    tokens: int
    queued: int
    running: int


class EngineLoads:
    """A learner: the loads of all attached engines, in order of their attachment."""

    def __init__(self) -> None:
        self.engines: dict[str, EngineLoad] = {}
        self.queued = 0
        self.overfull: dict[str, None] = {}  # engines whose foreground contexts exceed their KV
        self._counted: dict[str, _Counted] = {}

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        match event:
            case ev.EngineAttached():
                self._forget(event.engine)
                self.engines[event.engine] = EngineLoad(event.capacity_tokens, event.max_running, now)
                for program in state.programs.values():
                    self.recount(program, now)
            case ev.EngineLost():
                self._forget(event.engine)
            case ev.ProgramClosed() if subject is not None:
                self._replace(subject.name, None, now)
            case _ if subject is not None:
                self.recount(subject, now)

    def recount(self, program: Program, now: float) -> None:
        """Count a program as it is now: after an event about it, or after it was moved."""
        engine = program.seat or program.home
        if engine is None or engine not in self.engines:
            self._replace(program.name, None, now)
            return
        queued = running = 0
        for call in program.calls.values():
            if call.phase is Phase.SENT:
                queued += 1
            elif call.phase is not Phase.WAITING:
                running += 1
        seats = 1 if program.foreground else 0
        tokens = program.expected_context_tokens if seats else 0
        self._replace(program.name, _Counted(engine, seats, tokens, queued, running), now)

    def least(self) -> list[str]:
        """Engines, the one with the most KV to spare first."""
        engines = self.engines
        return sorted(engines, key=lambda name: (engines[name].kv_share, engines[name].programs, name))

    def _replace(self, program: str, new: _Counted | None, now: float) -> None:
        old = self._counted.pop(program, None)
        if old is not None:
            self._add(old, -1, now)
        if new is not None:
            self._counted[program] = new
            self._add(new, 1, now)

    def _add(self, counted: _Counted, sign: int, now: float) -> None:
        load = self.engines[counted.engine]
        load.programs += sign * counted.programs
        load.tokens += sign * counted.tokens
        load.queued += sign * counted.queued
        load.running += sign * counted.running
        self.queued += sign * counted.queued
        if load.calls:
            load.idle_since_s = None
        elif load.idle_since_s is None:
            load.idle_since_s = now
        if load.tokens > load.capacity_tokens:
            self.overfull[counted.engine] = None
        else:
            self.overfull.pop(counted.engine, None)

    def _forget(self, engine: str) -> None:
        gone = [name for name, counted in self._counted.items() if counted.engine == engine]
        for name in gone:
            self.queued -= self._counted.pop(name).queued
        self.engines.pop(engine, None)
        self.overfull.pop(engine, None)
