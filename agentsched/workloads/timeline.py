"""What each program was doing at each moment of a run, and where its KV was, from the event log.

One reduction of the log that the summary and the report share. A program's time from its first
call's arrival to its last call's end splits without overlap into:

* ``gateway``  a call waits for its program to be admitted (by the Admit and Pause decisions);
* ``queue``    let through, and not begun in the engine;
* ``prefill``  from the call's start to its first token, ``decode`` from there to its end;
* ``tool``     at least one tool call runs and no call is live;
* ``agent``    the rest: the agent's own time, and the way there and back.

Where several hold at once (a program may have several calls and tools), the first of prefill, decode,
queue, gateway, tool is shown: a program that computes is computing, whatever else it does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from agentsched.core import events as ev
from agentsched.core.decisions import Admit, Pass, Pause
from agentsched.core.log import Entry
from agentsched.graphs.aeg import Aeg, CallNode, Capture

KINDS = ("gateway", "queue", "prefill", "decode", "tool", "agent")
_PRECEDENCE = ("prefill", "decode", "queue", "gateway", "tool")

_Span = tuple[str, float, float]


@dataclass(frozen=True, slots=True)
class Segment:
    """``[start_s, end_s)`` in seconds from the run's first arrival."""

    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One program. ``held`` are (time, device tokens held, host tokens held), as reported;
    ``context`` are (time, context tokens)."""

    program: str
    segments: tuple[Segment, ...]
    held: tuple[tuple[float, int, int], ...]
    context: tuple[tuple[float, int], ...]

    def seconds(self, kind: str) -> float:
        """The program's time in segments of that kind."""
        return sum(segment.end_s - segment.start_s for segment in self.segments if segment.kind == kind)

    def context_tokens_at(self, at_s: float) -> int:
        index = bisect_right(self.context, at_s, key=lambda point: point[0])
        return self.context[index - 1][1] if index else 0


@dataclass(frozen=True, slots=True)
class Occupancy:
    """One step report: shares of the capacity of all engines attached at ``at_s``.

    ``used`` counts every block that is not free; ``useful`` what is held for programs that have
    calls to come. A block shared by several programs counts for each, so ``useful`` is cut at ``used``.
    """

    at_s: float
    used: float
    useful: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A whole run; times are seconds from ``origin_s``, the first arrival on the host's clock."""

    origin_s: float
    end_s: float
    capacity_tokens: int
    rows: tuple[Row, ...]
    occupancy: tuple[Occupancy, ...]
    programs: dict[str, Aeg]

    def mean_occupancy(self) -> tuple[float, float]:
        """(used, useful), averaged over the time between the reports; zeros if there were none."""
        used = useful = span = 0.0
        until = [report.at_s for report in self.occupancy[1:]] + [self.end_s]
        for here, next_s in zip(self.occupancy, until, strict=False):
            start, end = max(0.0, here.at_s), min(self.end_s, next_s)
            if end > start:
                used += here.used * (end - start)
                useful += here.useful * (end - start)
                span += end - start
        return (used / span, useful / span) if span else (0.0, 0.0)


@dataclass(slots=True)
class _Engine:
    capacity_tokens: int
    free_tokens: int
    device: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Reading:
    """The log as far as it was read."""

    capture: Capture = field(default_factory=Capture)
    seated: dict[str, str] = field(default_factory=dict)  # program -> engine
    waiting: dict[str, list[str]] = field(default_factory=dict)
    sent_s: dict[str, float] = field(default_factory=dict)
    engines: dict[str, _Engine] = field(default_factory=dict)
    capacity_tokens: int = 0
    held: dict[str, list[tuple[float, int, int]]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    occupancy: list[Occupancy] = field(default_factory=list)


def read_timeline(entries: Iterable[Entry]) -> Timeline:
    """Reduce a log. Raises ValueError if it has no call at all."""
    reading = _Reading()
    for entry in entries:
        if entry.event is not None:
            reading.capture.feed(entry.now, entry.event)
            _take_event(reading, entry.now, entry.event)
        if isinstance(entry.decision, Admit | Pass | Pause):
            _take_decision(reading, entry.now, entry.decision)
    programs = {name: aeg for name, aeg in reading.capture.programs.items() if aeg.calls}
    if not programs:
        raise ValueError("the log has no call: there is nothing to summarise")
    origin = min(aeg.calls[0].arrived_s for aeg in programs.values())
    ends = [call.ended_s for aeg in programs.values() for call in aeg.calls if call.ended_s is not None]
    return Timeline(
        origin_s=origin,
        end_s=max(ends, default=origin) - origin,
        capacity_tokens=reading.capacity_tokens,
        rows=tuple(_row(reading, aeg, origin) for aeg in programs.values()),
        occupancy=tuple(Occupancy(o.at_s - origin, o.used, o.useful) for o in reading.occupancy),
        programs=programs,
    )


def _take_event(reading: _Reading, now: float, event: ev.AnyEvent) -> None:
    match event:
        case ev.CallArrived():
            if event.program in reading.seated:
                reading.sent_s.setdefault(event.call, now)
            else:
                reading.waiting.setdefault(event.program, []).append(event.call)
        case ev.CallStarted():
            reading.sent_s.setdefault(event.call, now)
        case ev.ProgramClosed():
            reading.seated.pop(event.program, None)
            reading.ended.add(event.program)
        case ev.ProgramOpened():
            reading.ended.discard(event.program)
        case ev.EngineAttached():
            reading.engines[event.engine] = _Engine(event.capacity_tokens, event.capacity_tokens)
            attached = sum(engine.capacity_tokens for engine in reading.engines.values())
            reading.capacity_tokens = max(reading.capacity_tokens, attached)
        case ev.EngineLost():
            gone = reading.engines.pop(event.engine, None)
            reading.seated = {p: engine for p, engine in reading.seated.items() if engine != event.engine}
            for program in gone.device if gone else ():
                reading.held.setdefault(program, []).append((now, 0, 0))
        case ev.StepReport():
            _take_report(reading, now, event)
        case _:
            pass


def _take_decision(reading: _Reading, now: float, decision: Admit | Pass | Pause) -> None:
    if isinstance(decision, Pause):
        reading.seated.pop(decision.program, None)
        return
    if not isinstance(decision, Pass):
        reading.seated[decision.program] = decision.engine
    for call in reading.waiting.pop(decision.program, ()):
        reading.sent_s.setdefault(call, now)


def _take_report(reading: _Reading, now: float, report: ev.StepReport) -> None:
    engine = reading.engines.get(report.engine)
    if engine is None:
        return  # late words of an engine that is gone
    engine.free_tokens = report.free_tokens
    if report.snapshot:
        for program in sorted(engine.device.keys() - {held.program for held in report.held}):
            reading.held.setdefault(program, []).append((now, 0, 0))
        engine.device.clear()
    for held in report.held:
        engine.device[held.program] = held.device_tokens
        reading.held.setdefault(held.program, []).append((now, held.device_tokens, held.host_tokens))
    capacity = sum(engine.capacity_tokens for engine in reading.engines.values())
    free = sum(engine.free_tokens for engine in reading.engines.values())
    alive = sum(
        tokens
        for engine in reading.engines.values()
        for program, tokens in engine.device.items()
        if program not in reading.ended
    )
    if capacity:
        used = max(0.0, 1.0 - free / capacity)
        reading.occupancy.append(Occupancy(now, used, min(used, alive / capacity)))


def _row(reading: _Reading, aeg: Aeg, origin: float) -> Row:
    context = [(0.0, 0)]
    for call in aeg.calls:
        context.append((call.arrived_s - origin, call.prompt_tokens))
        if call.finished_s is not None:
            context.append((call.finished_s - origin, call.prompt_tokens + call.output_tokens))
    return Row(
        program=aeg.program,
        segments=tuple(_segments(reading, aeg, origin)),
        held=tuple((at - origin, device, host) for at, device, host in reading.held.get(aeg.program, [])),
        context=tuple(sorted(context, key=lambda point: point[0])),
    )


def _segments(reading: _Reading, aeg: Aeg, origin: float) -> list[Segment]:
    spans = [span for call in aeg.calls for span in _call_spans(call, reading.sent_s.get(call.call))]
    ends = [call.ended_s for call in aeg.calls if call.ended_s is not None]
    if not ends:
        return []
    begin, end = aeg.calls[0].arrived_s, max(ends)
    for tool in aeg.tools:
        if tool.started_s is not None:
            finished = end if tool.finished_s is None else tool.finished_s
            spans.append(("tool", tool.started_s, finished))
    return [Segment(kind, start - origin, stop - origin) for kind, start, stop in _merged(spans, begin, end)]


def _merged(spans: list[_Span], begin: float, end: float) -> Iterator[_Span]:
    """``[begin, end)`` in pieces of one kind each."""
    changes = [(begin, "", 0), (end, "", 0)]
    for kind, start, stop in spans:
        start, stop = max(start, begin), min(stop, end)
        if stop > start:
            changes += [(start, kind, 1), (stop, kind, -1)]
    changes.sort(key=lambda change: change[0])
    holding: Counter[str] = Counter()
    shown, since = "", begin
    for at_s, group in groupby(changes, key=lambda change: change[0]):
        for _, kind, step in group:
            holding[kind] += step
        kind = next((kind for kind in _PRECEDENCE if holding[kind]), "agent")
        if kind != shown or at_s >= end:
            if at_s > since:
                yield shown, since, at_s
            shown, since = kind, at_s
        if at_s >= end:
            return


def _call_spans(call: CallNode, sent_s: float | None) -> list[_Span]:
    end = call.ended_s
    if end is None:
        return []
    started = end if call.started_s is None else call.started_s
    sent = started if sent_s is None else min(sent_s, started)
    first = end if call.first_token_s is None else call.first_token_s
    return [
        ("gateway", call.arrived_s, sent),
        ("queue", sent, started),
        ("prefill", started, first),
        ("decode", first, end),
    ]
