"""Admission by predicted future peak: a program runs only while its engine has a seat for it.

Nothing thrashes like admitting one program too many: past the point where the foreground programs'
KV fits, every return finds its KV gone, and throughput falls to a third and stays there. So a new
program gets a seat only while the predicted peak over time of all seated programs, with it, fits
into the engine's KV times its overcommit (``forecast.predicted_peak``). Around that:

* Seats are given by turn (``turns``). Who cannot be seated holds back who stands behind, and a first
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
from dataclasses import dataclass

from agentsched.core import events as ev
from agentsched.core.forecast import Forecast
from agentsched.core.foresight import Foresight, index_at, leaves_at_s
from agentsched.core.ledger import Ledger
from agentsched.core.orders import Orders
from agentsched.core.policies.turns import Turns
from agentsched.core.state import EngineState, Program, State

RETRY_AFTER_S = 30.0
LOOK_AGAIN_S = 5.0
"""Overcommit rises while somebody waits, so who was refused is looked at again after so long."""

FULL_SHARE = 0.95
"""A program that has begun is let in up to this share of the KV: contexts grow on."""


class Overcommit:
    """One engine's factor: rises slowly, falls by what restoring a paused program will cost."""

    FIRST, LEAST, MOST = 1.1, 0.8, 2.5
    RELIEF_SHARE = 0.05
    GAIN = 0.02
    """Relative change for a second of the engine's time."""

    def __init__(self, waited_s: float) -> None:
        self._factor = self.FIRST
        self._waited_s = waited_s

    def factor(self, waited_s: float) -> float:
        """``waited_s``: for how long, in all, anybody has waited for a seat so far."""
        more_s, self._waited_s = waited_s - self._waited_s, waited_s
        self._factor = min(self.MOST, self._factor * math.exp(self.GAIN * self.RELIEF_SHARE * more_s))
        return self._factor

    def outgrown(self, restore_s: float) -> None:
        """A program had to be paused; bringing its KV back takes so long."""
        self._factor = max(self.LEAST, self._factor * math.exp(-self.GAIN * restore_s))


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """Parts of the gate that can be switched off, to see what each is worth.

    ``peak``: newcomers are held against the predicted peak, not against what is needed now.
    ``overcommit``: found online, not 1. ``leaving``: long gaps give up seats. ``relief``: programs in a
    gap are paused where contexts outgrow the engine.
    """

    peak: bool = True
    overcommit: bool = True
    leaving: bool = True
    relief: bool = True


class Seats:
    """The gate; and the placement, for where there is room only the ledgers know."""

    def __init__(
        self,
        foresight: Foresight,
        turns: Turns,
        mechanisms: Mechanisms | None = None,
        *,
        max_waiting: int = 10_000,
    ) -> None:
        """``turns`` has to observe before this does."""
        self._foresight = foresight
        self._turns = turns
        self._with = mechanisms or Mechanisms()
        self._max_waiting = max_waiting
        self._ledgers: dict[str, Ledger] = {}
        self._overcommit: dict[str, Overcommit] = {}
        self._anybody = False
        """Whether anybody waited for a seat after the last review."""
        self._refused: str | None = None
        self._looked_s = 0.0
        self._came: list[Program] = []
        self._touched: set[str] = set()
        """Engines whose ledger changed since the last review."""
        self._open: set[str] = set()
        """Engines whose ledger changed since somebody was refused."""
        self._leaves: list[tuple[float, str, str]] = []
        self._waited_s = 0.0
        self._now = 0.0

    # What is seen

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        if self._anybody:
            self._waited_s += now - self._now
        self._now = now
        while self._leaves and self._leaves[0][0] <= now:
            leaves_s, engine, name = heapq.heappop(self._leaves)
            if engine in self._ledgers and self._ledgers[engine].leave(name, leaves_s):
                self._open.add(engine)
        if subject is not None and subject.name == self._refused and not isinstance(event, ev.ToolProgressed):
            self._refused = None  # it may want something else now
        match event:
            case ev.EngineAttached():
                self._attach(state.engines[event.engine])
            case ev.EngineLost():
                del self._ledgers[event.engine], self._overcommit[event.engine]
                self._touched.discard(event.engine)
                self._open.discard(event.engine)
                self._refused = None
            case ev.ProgramClosed() if subject is not None and subject.home in self._ledgers:
                self._drop(subject, subject.home)
            case ev.CallArrived() if subject is not None and subject.seat is None:
                if len(subject.calls) == 1:
                    self._came.append(subject)
            case ev.CallArrived() | ev.CallFinished() | ev.CallAborted() | ev.ToolStarted():
                if subject is not None and subject.seat is not None:
                    self._put(subject, subject.seat, self._foresight.forecast(state, subject), state)
            case _:
                pass

    def _attach(self, engine: EngineState) -> None:
        self._ledgers[engine.name] = Ledger(engine)
        self._overcommit[engine.name] = Overcommit(self._waited_s)
        self._open.add(engine.name)

    def _put(self, program: Program, engine: str, forecast: Forecast, state: State) -> None:
        ledger, leaves_s = self._ledgers[engine], None
        if program.gap_since_s is not None:
            curve = self._foresight.gap(state, program)
            leaves_s = program.gap_since_s + leaves_at_s(curve, ledger.price())
            heapq.heappush(self._leaves, (leaves_s, engine, program.name))
        ledger.put(program, forecast, leaves_s, self._now)
        self._touched.add(engine)
        self._open.add(engine)

    def _drop(self, program: Program, engine: str) -> None:
        self._ledgers[engine].drop(program, self._now)
        self._open.add(engine)

    # What follows

    def review(self, state: State, orders: Orders) -> None:
        self._turn_away(state, orders)
        for engine in sorted(self._touched):
            ledger = self._ledgers[engine]
            if self._with.relief and ledger.need_tokens > ledger.room_tokens:
                self._relieve(state, orders, ledger)
        self._touched.clear()
        program = self._turns.first(state, orders.now)
        while program is not None and self._seat(state, orders, program):
            program = self._turns.first(state, orders.now)
        self._anybody = program is not None

    def next_review_s(self, state: State) -> float | None:
        if not state.queue or not self._ledgers:
            return None
        again_s = self._looked_s + LOOK_AGAIN_S
        return min(again_s, self._leaves[0][0]) if self._leaves else again_s

    def bound_tokens(self, engine: str) -> float:
        """What the predicted peak of an engine's programs has to stay within, with a new one."""
        factor = self._overcommit[engine].factor(self._waited_s) if self._with.overcommit else 1.0
        return self._ledgers[engine].room_tokens * factor

    def _turn_away(self, state: State, orders: Orders) -> None:
        """Backpressure: who came last is told to come back, where the line is too long."""
        came, self._came = self._came, []
        if len(state.queue) <= self._max_waiting:
            return
        for program in came:
            if program.name in state.queue and not program.calls_done:
                orders.reject(program, RETRY_AFTER_S, f"{self._max_waiting} programs wait already")

    def _seat(self, state: State, orders: Orders, program: Program) -> bool:
        if self._refused != program.name or orders.now >= self._looked_s + LOOK_AGAIN_S:
            self._open.update(self._ledgers)
            self._looked_s = orders.now
        self._refused = program.name
        if not self._open:
            return False
        forecast = self._foresight.forecast(state, program)
        for engine in self.candidates(state, program):
            if engine not in self._open:
                continue
            self._open.discard(engine)
            ledger = self._ledgers[engine]
            leavers = self._who_leaves(state, ledger, program, forecast)
            if leavers is None:
                continue
            for leaver in leavers:
                self._drop(leaver, engine)
                orders.pause(leaver, "its gap lasts longer than its KV is worth, and others wait")
            self._put(program, engine, forecast, state)
            need, room = ledger.need_tokens, ledger.room_tokens
            self._turns.seated(program, orders.now)
            orders.admit(program, engine, f"with it programs need {need:,} of {room:,} tokens")
            self._refused = None
            return True
        return False

    def candidates(self, state: State, program: Program) -> list[str]:
        """Where its KV may be first, then by room."""

        def place(name: str) -> tuple[bool, float, str]:
            ledger = self._ledgers[name]
            return (name != program.home, ledger.need_tokens / ledger.engine.capacity_tokens, name)

        return sorted(self._ledgers, key=place)

    def _who_leaves(
        self, state: State, ledger: Ledger, program: Program, forecast: Forecast
    ) -> list[Program] | None:
        """Who has to leave for the program to be seated; None if it cannot be."""
        without: set[str] = set()
        candidates = ledger.leavers() if self._with.leaving else iter(())
        while len(without) < len(ledger):
            if program.calls_done or not self._with.peak or self._turns.presses(program, self._now):
                fits = ledger.need_with(forecast, without) <= ledger.room_tokens * FULL_SHARE
            else:
                fits = ledger.peak_with(forecast, without) <= self.bound_tokens(ledger.engine.name)
            if fits:
                break
            leaver = next(candidates, None)
            if leaver is None:
                return None
            without.add(leaver)
        seats = state.seats[ledger.engine.name]
        return sorted((seats[name] for name in without), key=self._turns.of)

    def _relieve(self, state: State, orders: Orders, ledger: Ledger) -> None:
        def index(program: Program) -> float:
            assert program.gap_since_s is not None
            return index_at(self._foresight.gap(state, program), orders.now - program.gap_since_s)

        engine = ledger.engine
        away = [p for p in state.seats[engine.name].values() if p.gap_since_s is not None]
        for program in sorted(away, key=lambda p: (index(p), -p.order)):
            over = ledger.need_tokens - ledger.room_tokens
            if over <= 0 or len(ledger) == 1:
                return
            self._overcommit[engine.name].outgrown(ledger.tokens_of(program) / engine.restore_tokens_per_s)
            self._drop(program, engine.name)
            orders.pause(program, f"contexts outgrew the engine by {over:,} tokens")
