"""From an event log to the plain values that bounds take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agentsched.core import events as ev
from agentsched.core.decisions import Admit, Pass, Pause
from agentsched.core.log import Entry
from agentsched.workloads.bounds.contexts import (
    BoundsError,
    Path,
    TurnPath,
    grown,
    tokens_of,
    turn_paths,
)
from agentsched.workloads.bounds.recompute import CallSpan, recompute_bound
from agentsched.workloads.scripts import Script


@dataclass(frozen=True, slots=True)
class EngineCalls:
    """The calls that one engine began, from its attachment on. ``capacity_tokens``: device and host."""

    engine: str
    capacity_tokens: int
    block_tokens: int
    calls: tuple[CallSpan, ...]


@dataclass(slots=True)
class _Call:
    program: str
    prompt_tokens: int
    turn: int
    engine: _Engine | None = None
    start_s: float = float("inf")
    end_s: float = float("inf")
    output_tokens: int = 0
    ended: bool = False
    preempted: bool = False


@dataclass(slots=True)
class _Engine:
    name: str
    capacity_tokens: int
    block_tokens: int
    reported_s: tuple[float, float]
    calls: list[_Call] = field(default_factory=list)


def calls_of_run(entries: Iterable[Entry], scripts: Iterable[Script] = ()) -> list[EngineCalls]:
    """Each engine's calls, in the order of their starts; an engine that came back is a new one.

    Contexts come from ``scripts``: a program's next call is its script's next turn. For a program
    without a script they are guessed from sizes: nothing is shared with other programs, a prompt no
    shorter than the context before it continues it, and a shorter one starts anew. The guess is a
    bound only where it is true.

    Raises ``BoundsError`` if a prompt in the log is not its script's.
    """
    reading = _Reading()
    for entry in entries:
        if entry.event is not None:
            reading.take(entry.now, entry.event)
        match entry.decision:
            case Admit(program=program, engine=engine):
                reading.seat(program, engine)
            case Pass(program=program, engine=engine):
                reading.seat(program, engine)
                reading.seats.pop(program, None)
            case Pause(program=program):
                reading.seats.pop(program, None)
            case _:
                pass
    paths = {script.program: turn_paths(script) for script in scripts}
    contexts = _contexts(reading.calls, paths)
    return [
        EngineCalls(
            engine.name,
            engine.capacity_tokens,
            engine.block_tokens,
            tuple(_span(call, contexts[id(call)]) for call in engine.calls),
        )
        for engine in reading.engines
    ]


def recompute_bound_of_run(entries: Iterable[Entry], scripts: Iterable[Script] = ()) -> int:
    """Tokens that this run's calls, at these times on these engines, recompute under any retention."""
    return sum(
        recompute_bound(engine.calls, engine.capacity_tokens, block_tokens=engine.block_tokens)
        for engine in calls_of_run(entries, scripts)
    )


def call_seconds_of_run(entries: Iterable[Entry]) -> dict[str, list[float]]:
    """Seconds from arrival to end of each call that ended well, by program, in the order of arrival."""
    arrived: dict[str, tuple[str, float]] = {}
    seconds: dict[str, dict[float, float]] = {}
    for entry in entries:
        match entry.event:
            case ev.CallArrived(call=call, program=program):
                arrived[call] = (program, entry.now)
            case ev.CallFinished(call=call) if call in arrived:
                program, arrived_s = arrived.pop(call)
                seconds.setdefault(program, {})[arrived_s] = entry.now - arrived_s
            case _:
                pass
    return {program: [took for _, took in sorted(calls.items())] for program, calls in seconds.items()}


class _Reading:
    """The log as far as it was read. ``calls`` holds every call that arrived, in that order."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.engines: list[_Engine] = []
        self.seats: dict[str, str] = {}
        self._attached: dict[str, _Engine] = {}
        self._live: dict[str, _Call] = {}
        self._ended: dict[str, int] = {}
        self._waiting: dict[str, list[_Call]] = {}

    def take(self, now: float, event: ev.AnyEvent) -> None:
        match event:
            case ev.EngineAttached():
                capacity_tokens = event.capacity_tokens + event.host_capacity_tokens
                engine = _Engine(event.engine, capacity_tokens, event.block_tokens, (now, now))
                self._attached[event.engine] = engine
                self.engines.append(engine)
            case ev.EngineLost():
                self._attached.pop(event.engine, None)
                self.seats = {program: e for program, e in self.seats.items() if e != event.engine}
            case ev.CallArrived():
                turn = self._ended.get(event.program, 0)
                call = _Call(event.program, event.prompt_tokens, turn)
                self.calls.append(call)
                self._live[event.call] = call
                self._waiting.setdefault(event.program, []).append(call)
                self.seat(event.program, self.seats.get(event.program))
            case ev.CallStarted() if event.call in self._live:
                self._started(now, self._live[event.call])
            case ev.CallFinished() | ev.CallAborted() if event.call in self._live:
                self._over(now, event)
            case ev.StepReport() if event.engine in self._attached:
                self._reported(now, event)
            case ev.ProgramClosed():
                self.seats.pop(event.program, None)
            case _:
                pass

    def seat(self, program: str, engine: str | None) -> None:
        """Calls that wait at the gateway go to the engine; those in an engine stay there."""
        if engine is None:
            return
        self.seats[program] = engine
        for call in self._waiting.pop(program, ()):
            call.engine = self._attached.get(engine)

    def _started(self, now: float, call: _Call) -> None:
        if call.engine is None:
            raise BoundsError(f"a call of {call.program!r} starts at {now} s, but no engine was given to it")
        call.start_s = now
        call.engine.calls.append(call)

    def _over(self, now: float, event: ev.CallFinished | ev.CallAborted) -> None:
        call = self._live.pop(event.call)
        call.end_s = now
        if isinstance(event, ev.CallFinished):
            call.ended, call.output_tokens = True, event.output_tokens
            self._ended[call.program] = call.turn + 1

    def _reported(self, now: float, report: ev.StepReport) -> None:
        engine = self._attached[report.engine]
        if report.preempted:
            # The report may come late, so calls count that ended within the interval before it too.
            names, since_s = set(report.preempted), engine.reported_s[0]
            for call in engine.calls:
                if call.program in names and call.end_s >= since_s:
                    call.preempted = True
        engine.reported_s = (engine.reported_s[1], now)


def _span(call: _Call, path: TurnPath) -> CallSpan:
    return CallSpan(
        start_s=call.start_s,
        end_s=call.end_s,
        prompt=path.prompt,
        context=path.context,
        ended=call.ended,
        holds=call.ended and not call.preempted,
    )


def _contexts(calls: Iterable[_Call], scripts: Mapping[str, tuple[TurnPath, ...]]) -> dict[int, TurnPath]:
    """The contexts of each call, by its identity."""
    contexts: dict[int, TurnPath] = {}
    last: dict[str, tuple[int, Path]] = {}
    for call in calls:
        turns = scripts.get(call.program)
        if turns is not None:
            contexts[id(call)] = _scripted(call, turns)
            continue
        chain, context = last.get(call.program, (0, ()))
        more = call.prompt_tokens - tokens_of(context)
        if more < 0:
            chain, context, more = chain + 1, (), call.prompt_tokens
        own = f"{call.program}#{chain}"
        prompt = grown(context, own, more)
        contexts[id(call)] = TurnPath(prompt, grown(prompt, own, call.output_tokens))
        if call.ended:
            last[call.program] = (chain, contexts[id(call)].context)
    return contexts


def _scripted(call: _Call, turns: tuple[TurnPath, ...]) -> TurnPath:
    if call.turn >= len(turns):
        raise BoundsError(f"{call.program!r} makes more calls than the {len(turns)} of its script")
    path = turns[call.turn]
    if tokens_of(path.prompt) != call.prompt_tokens:
        raise BoundsError(
            f"{call.program!r}, turn {call.turn}: the log's prompt has {call.prompt_tokens} tokens, the "
            f"script's {tokens_of(path.prompt)}"
        )
    return path
