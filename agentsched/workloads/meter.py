"""What a simulated run did, measured while its log is written, so that a long run need not be kept.

The same definitions as in ``summary.py`` for all that a simulation and a real run have in common.
Tasks are root programs: a program that another one started counts with the calls, not with the tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentsched.core import events as ev
from agentsched.core.decisions import Admit, Pass
from agentsched.core.log import Entry
from agentsched.workloads.scripts import Piece, Script

WINDOW_S = 600.0
"""Width of the windows in which the course of a run is told."""

OPEN_RAMP = 20
"""Endings that make up the ramp of a run with open arrivals, if it has four times as many."""


def steady_span(
    starts: Sequence[float], ends: Sequence[float], concurrency: int | None = None
) -> tuple[float, float] | None:
    """From the end of the ramp to the last start: outside it a run fills or drains.

    The ramp is over when as many programs have ended as live at once, or a quarter of all if that is
    fewer. None if nothing starts after it.
    """
    ramp = min(OPEN_RAMP if concurrency is None else concurrency, len(ends) // 4)
    if not ramp:
        return None
    begin_s, end_s = sorted(ends)[ramp - 1], max(starts)
    return (begin_s, end_s) if end_s > begin_s else None


@dataclass(slots=True)
class Tenant:
    """KV that a tenant's programs held while every tenant had some, token-seconds."""

    live: int = 0
    tokens: int = 0
    token_seconds: float = 0.0


@dataclass(slots=True)
class Program:
    """Seconds of virtual time; ``held`` are unshared device tokens by engine."""

    script: Script
    root: bool
    first_s: float | None = None
    last_s: float = 0.0
    ended_calls: int = 0
    final_context: int = 0
    running: int = 0
    closed: bool = False
    finished: bool = False
    engine: str | None = None
    tokens: int = 0
    held: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Engine:
    capacity_tokens: int
    used_tokens: int = 0
    busy_s: float = 0.0
    holders: Counter[tuple[Piece, ...]] = field(default_factory=Counter)


class Meter:
    """Give every entry to ``take``. ``script_of`` names the script of a program, and whether it is a root."""

    def __init__(self, script_of: Callable[[str], tuple[Script, bool]], tenants: Iterable[str]) -> None:
        self.now = 0.0
        self.programs: dict[str, Program] = {}
        self.tenants = {name: Tenant() for name in tenants}
        self.engines: dict[str, _Engine] = {}
        self.ttft_s: list[float] = []
        self.counts: Counter[str] = Counter()
        self.useful_tokens: Counter[int] = Counter()
        self.ended_tasks: Counter[int] = Counter()
        self.tool_cpu_s, self.tool_memory_bytes = 0.0, 0
        self.used_area = self.useful_area = self.idle_area = 0.0
        self._script_of = script_of
        self._calls: dict[str, tuple[Program, float, bool]] = {}
        self._computing: set[str] = set()
        self._used = self._live = self._idle = self._shared = 0
        self._idle_tenants = len(self.tenants)
        self._take: Mapping[type, Callable[[float, Any], None]] = {
            ev.ProgramOpened: self._opened,
            ev.CallArrived: self._arrived,
            ev.CallStarted: self._started,
            ev.FirstToken: self._first_token,
            ev.CallFinished: self._finished,
            ev.CallAborted: self._aborted,
            ev.ProgramClosed: self._closed,
            ev.EngineAttached: self._attached,
            ev.StepReport: self._reported,
            Admit: self._seated,
            Pass: self._seated,
        }

    def take(self, entry: Entry) -> None:
        item = entry.event if entry.event is not None else entry.decision
        take = self._take.get(type(item))
        if take is not None:
            take(entry.now, item)

    def pass_to(self, now: float) -> None:
        """Let time pass to ``now``, the end of the run at last."""
        passed_s = now - self.now
        if passed_s > 0:
            self.used_area += self._used * passed_s
            self.useful_area += min(self._used, self._live + self._shared) * passed_s
            self.idle_area += min(self._used, self._idle) * passed_s
            if not self._idle_tenants:
                for tenant in self.tenants.values():
                    tenant.token_seconds += tenant.tokens * passed_s
            self.now = now

    def capacity_tokens(self) -> int:
        return sum(engine.capacity_tokens for engine in self.engines.values())

    # Programs and calls

    def _opened(self, now: float, event: ev.ProgramOpened) -> None:
        self.pass_to(now)
        script, root = self._script_of(event.program)
        self.programs[event.program] = Program(script, root)
        tenant = self.tenants[script.tenant]
        tenant.live += 1
        self._idle_tenants -= tenant.live == 1

    def _arrived(self, now: float, event: ev.CallArrived) -> None:
        program = self.programs[event.program]
        if program.first_s is None:
            program.first_s = now
        # One that was turned away comes again: it has been waiting since it came first.
        self._calls.setdefault(event.call, (program, now, program.ended_calls > 0))

    def _started(self, now: float, event: ev.CallStarted) -> None:
        self.pass_to(now)
        program = self._calls[event.call][0]
        self._computing.add(event.call)
        program.running += 1
        if program.running == 1:
            self._idle -= program.tokens

    def _first_token(self, now: float, event: ev.FirstToken) -> None:
        _, arrived_s, after_gap = self._calls[event.call]
        if after_gap:
            self.ttft_s.append(now - arrived_s)

    def _finished(self, now: float, event: ev.CallFinished) -> None:
        program = self._leave(now, event.call)
        program.finished = True
        program.last_s = now
        program.ended_calls += 1
        program.final_context = event.prompt_tokens + event.output_tokens
        counts = self.counts
        counts["prompt"] += event.prompt_tokens
        counts["cached"] += event.cached_tokens
        counts["output"] += event.output_tokens
        counts["recomputed"] += event.recomputed_tokens
        counts["calls"] += 1
        useful = event.prompt_tokens - event.cached_tokens - event.recomputed_tokens + event.output_tokens
        self.useful_tokens[int(now / WINDOW_S)] += useful
        if event.tool_calls:
            turn = program.script.turns[program.ended_calls - 1]
            counts["tools"] += 1
            self.tool_cpu_s += turn.cpu_s
            self.tool_memory_bytes = max(self.tool_memory_bytes, turn.memory_bytes)

    def _aborted(self, now: float, event: ev.CallAborted) -> None:
        if event.reason == "rejected":
            self.counts["rejected"] += 1
            return
        program = self._leave(now, event.call)
        program.finished = False
        self.counts["aborted"] += 1

    def _leave(self, now: float, call: str) -> Program:
        self.pass_to(now)
        program = self._calls.pop(call)[0]
        if call in self._computing:
            self._computing.remove(call)
            program.running -= 1
            if not program.running:
                self._idle += program.tokens
        return program

    def _closed(self, now: float, event: ev.ProgramClosed) -> None:
        self.pass_to(now)
        program = self.programs[event.program]
        for engine in list(program.held):
            self._hold(program, engine, 0)
        program.closed = True
        if program.root:
            self.ended_tasks[int(now / WINDOW_S)] += 1
        tenant = self.tenants[program.script.tenant]
        tenant.live -= 1
        self._idle_tenants += tenant.live == 0

    # Engines

    def _attached(self, now: float, event: ev.EngineAttached) -> None:
        self.pass_to(now)
        self.engines[event.engine] = _Engine(event.capacity_tokens)

    def _reported(self, now: float, event: ev.StepReport) -> None:
        self.pass_to(now)
        engine = self.engines[event.engine]
        used = engine.capacity_tokens - event.free_tokens
        self._used += used - engine.used_tokens
        engine.used_tokens = used
        engine.busy_s += event.step_s
        self.counts["preempted"] += len(event.preempted)
        for held in event.held:
            program = self.programs.get(held.program)
            if program is not None and not program.closed:
                own = max(0, held.device_tokens - program.script.prefix_tokens)
                self._hold(program, event.engine, own)

    def _hold(self, program: Program, engine: str, tokens: int) -> None:
        """``tokens`` of its own; a shared prefix is there as long as anyone has more than it there."""
        before = program.held.pop(engine, 0)
        if tokens:
            program.held[engine] = tokens
        change = tokens - before
        program.tokens += change
        self._live += change
        self.tenants[program.script.tenant].tokens += change
        if not program.running:
            self._idle += change
        if bool(before) != bool(tokens) and program.script.prefix:
            holders = self.engines[engine].holders
            shared = bool(holders[program.script.prefix])
            holders[program.script.prefix] += 1 if tokens else -1
            now_shared = bool(holders[program.script.prefix])
            self._shared += (now_shared - shared) * program.script.prefix_tokens

    def _seated(self, now: float, decision: Admit | Pass) -> None:
        program = self.programs[decision.program]
        if program.engine is not None and program.engine != decision.engine:
            self.counts["moves"] += 1
        program.engine = decision.engine
