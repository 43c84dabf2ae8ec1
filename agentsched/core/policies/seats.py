"""Admission by predicted future peak: a program runs only while its engine has a seat for it.

Nothing thrashes like admitting one program too many: past the point where the foreground programs'
KV fits, every return finds its KV gone, and throughput falls to a third and stays there. So a new
program gets a seat only while the predicted peak over time of all seated programs, with it, fits
into the engine's KV times its overcommit (``forecast.predicted_peak``). Around that:

* Seats are given in the line's order. Who cannot be seated holds back who stands behind, and a first
  program is always seated, so somebody can always run to the end, and everybody's turn comes.
* A program whose gap lasts leaves its seat to whoever waits, once the gap's index is below the price
  of KV (``Ledger.price``). It comes back by its old place in line, and needs no more then than what
  it holds: it has begun, and its KV may still be there.
* If the contexts outgrow the engine all the same, programs in a gap are paused, least index first,
  before the engine has to throw away KV that somebody needs.
* Predictions are means, so peaks seldom meet; how far to trust in that is found online. Overcommit
  rises while somebody waits, and falls with each program paused because contexts outgrew the engine,
  so that restoring such programs takes ``RELIEF_SHARE`` of the engine's time. That share was found by
  sweeps over recorded and generated agents: throughput is flat from 0.03 to 0.06 where many
  programs fit, and falls off below 0.05 where few do.
"""

from __future__ import annotations

import heapq
import math

from agentsched.core import events as ev
from agentsched.core.foresight import Foresight, index_at, leaves_at_s
from agentsched.core.ledger import Ledger
from agentsched.core.orders import Orders
from agentsched.core.state import Program, State

RETRY_AFTER_S = 30.0
FULL_SHARE = 0.95
"""A program that has begun is let in up to this share of the KV: contexts grow on."""


class Overcommit:
    """One engine's factor: rises slowly, falls by what restoring a paused program will cost."""

    FIRST, LEAST, MOST = 1.1, 0.8, 2.5
    RELIEF_SHARE = 0.05
    GAIN = 0.02
    """Relative change for a second of the engine's time."""

    def __init__(self) -> None:
        self.factor = self.FIRST

    def waited(self, seconds: float) -> None:
        """Somebody waited so long for a seat."""
        self.factor = min(self.MOST, self.factor * math.exp(self.GAIN * self.RELIEF_SHARE * seconds))

    def outgrown(self, restore_s: float) -> None:
        """A program had to be paused; bringing its KV back takes so long."""
        self.factor = max(self.LEAST, self.factor * math.exp(-self.GAIN * restore_s))


class Seats:
    """The gate."""

    def __init__(self, foresight: Foresight, *, max_waiting: int = 10_000) -> None:
        self._foresight = foresight
        self._max_waiting = max_waiting
        self._ledgers: dict[str, Ledger] = {}
        self._overcommit: dict[str, Overcommit] = {}
        self._line: list[tuple[int, str]] = []
        self._refused: str | None = None
        self._came: list[Program] = []

    # What is seen

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        self._tick(now, waited=bool(self._line))
        match event:
            case ev.EngineAttached():
                self._ledgers[event.engine] = Ledger(state.engines[event.engine])
                self._overcommit[event.engine] = Overcommit()
            case ev.EngineLost():
                del self._ledgers[event.engine], self._overcommit[event.engine]
                self._line = sorted((p.order, p.name) for p in state.queue.values())
                self._refused = None
            case ev.ProgramClosed() if subject is not None and subject.home in self._ledgers:
                self._ledgers[subject.home].drop(subject)
            case ev.CallArrived() if subject is not None and subject.seat is None:
                heapq.heappush(self._line, (subject.order, subject.name))
                self._came.append(subject)
            case ev.CallArrived() | ev.CallFinished() | ev.CallAborted() | ev.ToolStarted():
                if subject is not None and subject.seat is not None:
                    self._put(state, subject, self._ledgers[subject.seat])
            case _:
                pass

    def _tick(self, now: float, *, waited: bool) -> None:
        for name, ledger in self._ledgers.items():
            passed_s = ledger.tick(now)
            if waited and len(ledger):
                self._overcommit[name].waited(passed_s)

    def _put(self, state: State, program: Program, ledger: Ledger) -> None:
        leaves_s = None
        if program.gap_since_s is not None:
            curve = self._foresight.gap(state, program)
            leaves_s = program.gap_since_s + leaves_at_s(curve, ledger.price())
        ledger.put(program, self._foresight.forecast(state, program), leaves_s)

    # What follows

    def review(self, state: State, orders: Orders) -> None:
        self._turn_away(state, orders)
        for name, ledger in self._ledgers.items():
            if ledger.need_tokens > ledger.room_tokens:
                self._relieve(state, orders, ledger, self._overcommit[name])
        while self._line:
            program = state.queue.get(self._line[0][1])
            if program is not None and not self._seat(state, orders, program):
                return
            heapq.heappop(self._line)

    def next_review_s(self, state: State) -> float | None:
        if not state.queue:
            return None
        times = (ledger.next_leave_s() for ledger in self._ledgers.values())
        return min((time for time in times if time is not None), default=None)

    def bound_tokens(self, engine: str) -> float:
        """What the predicted peak of an engine's programs has to stay within, with a new one."""
        return self._ledgers[engine].room_tokens * self._overcommit[engine].factor

    def _turn_away(self, state: State, orders: Orders) -> None:
        """Backpressure: who came last is told to come back, where the line is too long."""
        came, self._came = self._came, []
        if len(state.queue) <= self._max_waiting:
            return
        for program in came:
            if program.name in state.queue and not program.calls_done:
                orders.reject(program, RETRY_AFTER_S, f"{self._max_waiting} programs wait already")

    def _seat(self, state: State, orders: Orders, program: Program) -> bool:
        again, self._refused = self._refused == program.name, program.name
        forecast = None
        for ledger in self._candidates(program):
            if again and not ledger.changed:
                continue
            forecast = forecast or self._foresight.forecast(state, program)
            leavers = self._who_leaves(state, ledger, program)
            ledger.changed = False
            if leavers is None:
                continue
            for leaver in leavers:
                ledger.drop(leaver)
                orders.pause(leaver, "its gap lasts longer than its KV is worth, and others wait")
            ledger.put(program, forecast, None)
            need, room = ledger.need_tokens, ledger.room_tokens
            orders.admit(program, ledger.engine.name, f"with it programs need {need:,} of {room:,} tokens")
            self._refused = None
            return True
        return False

    def _candidates(self, program: Program) -> list[Ledger]:
        """Where its KV may be first, then by room."""

        def place(ledger: Ledger) -> tuple[bool, float, str]:
            engine = ledger.engine
            return (engine.name != program.home, ledger.need_tokens / engine.capacity_tokens, engine.name)

        return sorted(self._ledgers.values(), key=place)

    def _who_leaves(self, state: State, ledger: Ledger, program: Program) -> list[Program] | None:
        """Who has to leave for the program to be seated; None if it cannot be."""
        forecast = self._foresight.forecast(state, program)
        seats = state.seats[ledger.engine.name]
        without: set[str] = set()
        candidates = ledger.leavers()
        while len(without) < len(ledger):
            if program.calls_done:
                fits = ledger.need_with(forecast, without) <= ledger.room_tokens * FULL_SHARE
            else:
                fits = ledger.peak_with(forecast, without) <= self.bound_tokens(ledger.engine.name)
            if fits:
                break
            leaver = next(candidates, None)
            if leaver is None:
                return None
            without.add(leaver)
        return [seats[name] for name in sorted(without, key=lambda name: seats[name].order)]

    def _relieve(self, state: State, orders: Orders, ledger: Ledger, overcommit: Overcommit) -> None:
        def index(program: Program) -> float:
            assert program.gap_since_s is not None
            return index_at(self._foresight.gap(state, program), orders.now - program.gap_since_s)

        away = [p for p in state.seats[ledger.engine.name].values() if p.gap_since_s is not None]
        for program in sorted(away, key=lambda p: (index(p), -p.order)):
            over = ledger.need_tokens - ledger.room_tokens
            if over <= 0 or len(ledger) == 1:
                return
            overcommit.outgrown(ledger.tokens_of(program) / ledger.engine.restore_tokens_per_s)
            ledger.drop(program)
            orders.pause(program, f"contexts outgrew the engine by {over:,} tokens")
