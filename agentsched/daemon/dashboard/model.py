"""The view model: from events and decisions to what is shown. Pure; the daemon, reports and time travel share
it.

``apply`` follows what happened, ``look`` what the core expects, ``delta`` says what is new since it was last
asked, ``view`` everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from agentsched import __version__
from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.core import Core
from agentsched.core.outlook import Outlook, outlooks, waits
from agentsched.core.standing import worth_at
from agentsched.core.state import State
from agentsched.daemon.dashboard import words
from agentsched.daemon.dashboard.followed import Followed
from agentsched.daemon.dashboard.following import Following
from agentsched.daemon.dashboard.rows import Delta, EngineRow, Gauge, HostRow, Item, Keep, View

T = TypeVar("T")

FEW_TOKENS = 64
"""Less than this comes and goes as blocks are filled."""

MOST_WAITING = 1_000
"""Who waits is told why, first come first; of the others there are too many to look at."""

GAUGE_S = 1.0
SAME_MOVE_S = 5.0


LIVE = Keep(past_s=900.0, spans=200, kept=200, calls=40, tools=80, gauges=900, items=3000)
"""In a running daemon: so much that it stops growing once ``past_s`` have gone by."""

ALL = Keep()


@dataclass(slots=True)
class _Engine:
    row: EngineRow
    used_tokens: int = 0
    running: int = 0
    queued: int = 0
    prefilled_tokens: int = 0
    recomputed_tokens: int = 0
    evicted_tokens: int = 0
    outlook: Outlook | None = None
    new_gauges: int = 0

    def measure(self, now: float) -> None:
        """A gauge, if the last one is of long enough ago, or was without what is expected."""
        gauges, seen = self.row.gauges, self.outlook
        recent = bool(gauges) and now < gauges[-1].at_s + GAUGE_S
        if recent and (seen is None or gauges[-1].need_tokens is not None):
            return
        gauge = Gauge(
            gauges[-1].at_s if recent else now,
            self.used_tokens,
            self.running,
            self.queued,
            self.prefilled_tokens,
            self.recomputed_tokens,
            self.evicted_tokens,
            None if seen is None else seen.need_tokens,
            None if seen is None else round(seen.peak.tokens),
            None if seen is None or seen.bound_tokens is None else round(seen.bound_tokens),
        )
        if recent:
            gauges[-1] = gauge
            self.new_gauges = max(1, self.new_gauges)
        else:
            gauges.append(gauge)
            self.new_gauges += 1


class Model:
    """Of one core. ``policy`` is its policy's name."""

    def __init__(self, policy: str, keep: Keep = LIVE) -> None:
        self._policy = policy
        self._keep = keep
        self._following = Following(keep)
        self._engines: dict[str, _Engine] = {}
        self._hosts: dict[str, HostRow] = {}
        self._items: deque[Item] = deque(maxlen=keep.items)
        self._new_items: dict[int, Item] = {}
        self._moves: dict[tuple[str, str], tuple[Item, int]] = {}
        """The latest moves of a program's KV, by kind, and of how many tokens they are."""
        self._numbered = 0
        self._engaged = True
        self.since_s: float | None = None
        self.now = 0.0

    # What happens

    def apply(self, now: float, event: ev.AnyEvent, decided: Iterable[de.AnyDecision]) -> None:
        """Follow one event that the core has handled, and what it decided."""
        self.now = now
        if self.since_s is None:
            self.since_s = now
        subject = self._following.event(now, event)
        self._note_event(now, event, subject)
        for said in decided:
            self._following.decision(now, event, said)
            program = "" if isinstance(said, de.EngineTerms) else said.program
            engine = getattr(said, "engine", "")
            kind = "terms" if isinstance(said, de.EngineTerms) else type(said).__name__.lower()
            self._note(now, kind, words.decision(said, now), program, engine, advice=said.advice)

    def look(self, now: float, core: Core, *, first: bool = False) -> None:
        """Take over what the core expects now. ``first``: who waits has waited before, which is no news."""
        self.now = max(self.now, now)
        for seen in outlooks(core):
            engine = self._engines.get(seen.engine)
            if engine is not None:
                engine.outlook, row = seen, engine.row
                row.room_tokens, row.peak_calls, row.price = seen.room_tokens, seen.peak.calls, seen.price
                engine.measure(now)
        for waiting in waits(core)[:MOST_WAITING]:
            program = core.state.programs[waiting.program]
            said = words.wait(waiting, program.host, self._following.pace_s)
            known = self._following.programs.get(waiting.program)
            if known is None or known.row.waits == said:
                continue
            known = self._following.get(waiting.program)
            assert known is not None
            known.row.waits = said
            if waiting.cause != known.told_wait:
                known.told_wait = waiting.cause
                if first:
                    continue
                self._note(now, "wait", f"waits: {said}", waiting.program, "")

    def settle(self, now: float, state: State, on_host: Mapping[str, int]) -> None:
        """Make it what the core knows (``Following.settle``)."""
        self.now = max(self.now, now)
        self._following.settle(state, now, on_host)
        for name, engine in state.engines.items():
            known = self._attach(name, engine.capacity_tokens, engine.host_tokens)
            known.used_tokens = engine.capacity_tokens - engine.free_tokens
            known.running, known.queued = engine.running, engine.queued
            known.measure(now)
        for name in list(self._hosts):
            if name not in state.hosts:
                del self._hosts[name]
        for name, memory_bytes in state.hosts.items():
            self._hosts[name] = HostRow(host=name, memory_bytes=memory_bytes)

    def _note(
        self, now: float, kind: str, text: str, program: str, engine: str, *, advice: bool = False
    ) -> Item:
        self._numbered += 1
        known = self._following.programs.get(program)
        item = Item(
            number=self._numbered,
            at_s=now,
            kind=kind,
            text=text,
            program=program,
            tenant="" if known is None else known.row.tenant,
            engine=engine,
            advice=advice,
        )
        self._items.append(item)
        self._new_items[item.number] = item
        return item

    def _note_event(self, now: float, event: ev.AnyEvent, subject: Followed | None) -> None:
        match event:
            case ev.ProgramOpened():
                self._note(now, "opened", "begins", event.program, "")
            case ev.ProgramClosed():
                how = "ended: it was silent for long" if event.expired else "ended"
                self._note(now, "closed", how, event.program, "")
            case ev.CallAborted() if subject is not None:
                self._note(now, "failed", f"a call failed: {event.reason}", subject.row.program, "")
            case ev.StepReport():
                self._report(now, event)
            case ev.EngineAttached():
                engine = self._attach(event.engine, event.capacity_tokens, event.host_capacity_tokens)
                engine.used_tokens = engine.running = engine.queued = 0
                text = f"engine attached: {words.tokens(event.capacity_tokens)} tokens of KV"
                self._note(now, "engine", text, "", event.engine)
            case ev.EngineLost():
                if event.engine in self._engines:
                    self._engines[event.engine].row.attached = False
                self._note(now, "engine", "engine lost, and all KV in it", "", event.engine)
            case ev.HostAttached():
                self._hosts[event.host] = HostRow(host=event.host, memory_bytes=event.memory_bytes)
                gb = event.memory_bytes / 1e9
                self._note(now, "host", f"host of tools {event.host}: {gb:.1f} GB", "", "")
            case ev.HostLost():
                self._hosts.pop(event.host, None)
                self._note(now, "host", f"host of tools {event.host} is gone", "", "")
            case ev.PolicyEngaged():
                self._engaged = event.engaged
                text = "the policy decides" if event.engaged else "the policy only watches"
                self._note(now, "engaged", text, "", "")
            case _:
                pass

    def _attach(self, name: str, capacity_tokens: int, host_tokens: int) -> _Engine:
        engine = self._engines.get(name)
        if engine is None:
            row = EngineRow(engine=name, capacity_tokens=capacity_tokens, gauges=[])
            engine = self._engines[name] = _Engine(row)
        row = engine.row
        row.capacity_tokens, row.host_capacity_tokens, row.attached = capacity_tokens, host_tokens, True
        return engine

    # What engines do by themselves

    def _report(self, now: float, report: ev.StepReport) -> None:
        engine = self._engines.get(report.engine)
        if engine is None:
            return
        engine.used_tokens = engine.row.capacity_tokens - report.free_tokens
        engine.running, engine.queued = report.running, report.queued
        engine.prefilled_tokens += report.prefilled_tokens
        engine.recomputed_tokens += report.recomputed_tokens
        engine.evicted_tokens += report.evicted_tokens
        for held in report.held:
            if (changed := self._following.held(now, held)) is not None:
                self._moved(now, engine, *changed)
        for program in report.broken_leases:
            text = "the engine was stuck, and let its KV go before its time"
            self._note(now, "broken", text, program, report.engine)
        for program in report.preempted:
            text = "the engine set its call back: it ran out of KV, and others go first"
            self._note(now, "preempt", text, program, report.engine)
        engine.measure(now)

    def _moved(self, now: float, engine: _Engine, subject: Followed, device: int, host: int) -> None:
        """By how many tokens its parts grew."""
        if device <= -FEW_TOKENS and host >= FEW_TOKENS:
            self._move(now, "demote", min(-device, host), engine, subject)
        elif device <= -FEW_TOKENS:
            self._move(now, "evict", -device, engine, subject)
        elif host <= -FEW_TOKENS and device >= FEW_TOKENS:
            self._move(now, "restore", min(device, -host), engine, subject)

    def _move(self, now: float, kind: str, tokens: int, engine: _Engine, subject: Followed) -> None:
        """One line for what an engine moves bit by bit."""
        program = subject.row.program
        before, moved = self._moves.get((program, kind), (None, 0))
        if before is None or now > before.at_s + SAME_MOVE_S:
            before, moved = self._note(now, kind, "", program, engine.row.engine), 0
        moved += tokens
        left = subject.device_tokens
        if kind == "evict":
            before.text = words.evicted(moved, left, _worth(subject.order, left, now), engine.row.price)
        else:
            before.text = words.moved(moved, left, to_host=kind == "demote")
        self._new_items[before.number] = before
        self._moves[program, kind] = (before, moved)

    # What is shown

    @property
    def changed(self) -> bool:
        """Whether ``delta`` would say more than the latest gauges."""
        return bool(self._new_items) or self._following.any_changed

    def delta(self) -> Delta:
        """What is new since this or ``view`` was last asked."""
        programs = []
        for known in self._following.changed():
            programs.append(known.news())
            self._following.trim(known, self.now)
        items, self._new_items = self._new_items, {}
        gone = self._following.forget(self.now)
        self._moves = {
            about: move for about, move in self._moves.items() if move[0].at_s + SAME_MOVE_S > self.now
        }
        return Delta(
            at_s=self.now,
            engaged=self._engaged,
            pace_s=self._following.pace_s,
            programs=programs,
            gone=gone,
            items=list(items.values()),
            engines=[self._engine_news(engine) for engine in self._engines.values()],
            hosts=list(self._hosts.values()),
        )

    def view(self, unix_s: float, notes: Sequence[str] = (), *, logged: bool = False) -> View:
        """Everything; ``unix_s`` is now on the wall clock."""
        return View(
            agentsched=__version__,
            policy=self._policy,
            at_s=self.now,
            unix_s=unix_s,
            since_s=self.now if self.since_s is None else self.since_s,
            engaged=self._engaged,
            pace_s=self._following.pace_s,
            programs=[known.row for known in self._following.programs.values()],
            items=list(self._items),
            engines=[engine.row for engine in self._engines.values()],
            hosts=list(self._hosts.values()),
            keep=self._keep,
            notes=list(notes),
            logged=logged,
        )

    def _engine_news(self, engine: _Engine) -> EngineRow:
        gauges, new = engine.row.gauges, engine.new_gauges
        news = msgspec.structs.replace(engine.row, gauges=gauges[len(gauges) - new :])
        engine.new_gauges = 0
        if self._keep.gauges is not None:
            del gauges[: -self._keep.gauges]
        return news


def _worth(order: de.Retain | None, token: int, now: float) -> float | None:
    """What the order says that this token of the context is worth; 0 where it says nothing any more."""
    if order is None:
        return None
    if now >= order.lease_until_s:
        return 0.0
    here = next((part for part in order.segments if part.start_tokens <= token < part.end_tokens), None)
    return 0.0 if here is None else worth_at(here.device, now)


def brief(view: View) -> View:
    """Only what is now: of each list the last, and open tool calls."""
    programs = [
        msgspec.structs.replace(
            row,
            spans=row.spans[-1:],
            kept=row.kept[-1:],
            calls=row.calls[-1:],
            tools=[tool for tool in row.tools if tool.ended_s is None],
        )
        for row in view.programs
        if row.ended_s is None
    ]
    engines = [msgspec.structs.replace(row, gauges=row.gauges[-60:]) for row in view.engines]
    return msgspec.structs.replace(view, programs=programs, engines=engines, items=view.items[-200:])


MOST_POINTS = 600
MOST_ITEMS = 20_000
OFTEN = frozenset({"rank", "retain", "release"})


def thinned(view: View) -> View:
    """Small enough for a page: of long lists every so many, of too many decisions those of places and KV."""
    programs = [msgspec.structs.replace(row, kept=_every(row.kept, MOST_POINTS)) for row in view.programs]
    engines = [
        msgspec.structs.replace(row, gauges=_every(row.gauges, 4 * MOST_POINTS)) for row in view.engines
    ]
    items, notes = view.items, view.notes
    if len(items) > MOST_ITEMS:
        items = [item for item in items if item.kind not in OFTEN][-MOST_ITEMS:]
        notes = [
            *notes,
            f"Of {len(view.items):,} decisions, {len(items):,} are shown: those of places and KV.",
        ]
    return msgspec.structs.replace(view, programs=programs, engines=engines, items=items, notes=notes)


def _every(points: list[T], most: int) -> list[T]:
    step = -(-len(points) // most)
    return points if step <= 1 else [*points[:-1:step], points[-1]]
