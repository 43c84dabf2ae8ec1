"""Admission by predicted future peak: a program runs only while its engine has a seat for it.

Nothing thrashes like admitting one program too many: past the point where the foreground programs'
KV fits, every return finds its KV gone, and throughput falls to a third and stays there. So a new
program gets a seat only while the predicted peak over time of all seated programs, with it, fits
into the engine's KV times its overcommit (``forecast.predicted_peak``). Around that:

* Seats are given by turn (``turns``). Who cannot be seated holds back who stands behind, and a first
  program is always seated, so somebody can always run to the end, and everybody's turn comes.
* A seat is taken with the memory that the program's tools need on their host, or not at all (``host_gate``).
* A program whose gap lasts leaves its seat to whoever waits, once the gap's index is below the price
  of KV (``Ledger.price``). It comes back by its old place in line, and needs no more then than what
  it holds: it has begun, and its KV may still be there.
* If the contexts outgrow the engine all the same, programs in a gap are paused, least index first,
  before the engine has to throw away KV that somebody needs.
* A newcomer that finds no seat may begin on trial, in room that is free (``tryouts``).
* Predictions are means, so peaks seldom meet; how far to trust in that is found online (``overcommit``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from agentsched.core import events as ev
from agentsched.core.forecast import Forecast
from agentsched.core.foresight import Foresight, index_at
from agentsched.core.ledger import Ledger
from agentsched.core.orders import Orders
from agentsched.core.policies.host_gate import HostGate
from agentsched.core.policies.mechanisms import Mechanisms
from agentsched.core.policies.needs import Needs
from agentsched.core.policies.openings import Openings
from agentsched.core.policies.overcommit import Overcommit
from agentsched.core.policies.tryouts import MOST_OF_ONE, MOST_SHARE, Tryouts
from agentsched.core.policies.turns import Turns
from agentsched.core.state import EngineState, Program, State

RETRY_AFTER_S = 30.0
LOOK_AGAIN_S = 5.0
"""Overcommit rises while somebody waits, so who was refused is looked at again after so long."""

LITTLE_SHARE = 0.3
"""While less than this share of the KV is needed, newcomers are let in whatever is predicted: of new kinds of
programs little is known, and what is small is cheap to pause."""

FULL_SHARE = 0.95
"""Programs are let in up to this share of the KV, by what they need now: contexts grow on."""


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
        self._needs = Needs(foresight)
        self._ledgers = self._needs.ledgers
        self._overcommit: dict[str, Overcommit] = {}
        self.hosts = HostGate(turns.of)
        self._tryouts = Tryouts()
        self._anybody = False
        """Whether anybody waited for a seat after the last review, but for hosts that are full."""
        self._openings = Openings()
        self._trial_openings = Openings()
        self._looked_s = 0.0
        self._came: list[Program] = []
        self._waited_s = self._now = 0.0

    # What is seen

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        if self._anybody:
            self._waited_s += now - self._now
        self._now = now
        if self._needs.departures.are_due(now):
            self._depart(state, now)
        self.hosts.observe(state, now, event, subject)
        if subject is not None and state.queue and not isinstance(event, ev.ToolProgressed):
            self._openings.anew(subject.name)  # it may want something else now
            self._trial_openings.anew(subject.name)
        match event:
            case ev.CallArrived() | ev.CallFinished() if subject is not None and subject.seat is not None:
                self._recount(state, subject, subject.seat)
            case ev.CallStarted() if subject is not None and subject.calls_done:
                pass  # what it shares was known
            case ev.FirstToken() | ev.ToolProgressed(done_fraction=None):
                pass
            case ev.EngineAttached():
                self._attach(state.engines[event.engine])
            case ev.EngineLost():
                for name in self._ledgers[event.engine].programs():
                    self._tryouts.unseated(state.programs[name])
                self._needs.lose(event.engine)
                del self._overcommit[event.engine]
                self._openings.lost(event.engine)
                self._trial_openings.lost(event.engine)
            case ev.ProgramClosed() if subject is not None:
                self._end(subject)
            case ev.CallArrived() if subject is not None and subject.seat is None:
                if len(subject.calls) == 1:
                    self._came.append(subject)
                    if not subject.calls_done:
                        self._tryouts.came(subject)
            case (
                ev.CallStarted()
                | ev.CallAborted()
                | ev.ToolStarted()
                | ev.ToolProgressed()
                | ev.ProgramAnnotated()
            ) if subject is not None and subject.seat is not None:
                self._recount(state, subject, subject.seat)
            case _:
                pass

    def _attach(self, engine: EngineState) -> None:
        self._needs.attach(engine)
        self._overcommit[engine.name] = Overcommit(self._waited_s)
        self._changed(engine.name)

    def _changed(self, engine: str) -> None:
        self._openings.changed(engine)
        self._trial_openings.changed(engine)

    def _recount(self, state: State, program: Program, engine: str) -> None:
        """Something about it has changed. What it will need counts while somebody waits, or a host of tools
        has limits."""
        if state.queue or state.hosts:
            self._put(program, engine, self._needs.forecast(state, program), state)
        else:
            self._needs.count(program, engine, self._now)
            self._changed(engine)

    def _catch_up(self, state: State) -> None:
        """Foresee what has not been since somebody waited last."""
        for program, engine in self._needs.take_stale(state):
            self._put(program, engine, self._needs.forecast(state, program), state)
        self._depart(state, self._now)

    def _depart(self, state: State, now: float) -> None:
        """Whose gaps are not worth their seats any more."""
        for engine, name in self._needs.departures.due(now, self._ledgers):
            self._changed(engine)
            self.hosts.may_leave(state, name)

    def _put(self, program: Program, engine: str, forecast: Forecast, state: State) -> None:
        if program in self._tryouts:
            forecast = Forecast(forecast.now_tokens, 0.0, 1.0)  # it is paused before it grows
        self._needs.put(state, program, engine, forecast, self._now)
        self._changed(engine)

    def _end(self, program: Program) -> None:
        self._tryouts.ended(program, self._now)
        engine = program.home
        if engine is None or engine not in self._ledgers:
            return
        ledger = self._ledgers[engine]
        if program in ledger and self._anybody:
            self._overcommit[engine].ended(ledger.need_tokens / ledger.room_tokens)
        self._drop(program, engine)

    def _drop(self, program: Program, engine: str) -> None:
        self._needs.drop(program, engine, self._now)
        self._changed(engine)

    # What follows

    def review(self, state: State, orders: Orders) -> None:
        if self._came:
            self._turn_away(state, orders)
        if self._needs.stale and (state.queue or state.hosts):
            self._catch_up(state)
        if outgrown := self._needs.outgrown:
            for engine in sorted(outgrown):
                ledger = self._ledgers[engine]
                if self._with.relief and ledger.need_tokens > ledger.room_tokens:
                    self._relieve(state, orders, ledger)
            outgrown.clear()
        for program in self._tryouts.over(state, orders.now):
            self._pause(state, orders, program, "its trial is over, and it waits for its turn")
        if state.hosts:
            for program in self.hosts.relief(state):
                self._pause(
                    state, orders, program, "a tool before it in line was killed and needs its host's memory"
                )
        if orders.now >= self._looked_s + LOOK_AGAIN_S:
            self._looked_s = orders.now
            self._openings.anew()
            self._trial_openings.anew()
            self.hosts.look_again(state)
        self._anybody = bool(state.queue) and self._seat_all(state, orders)
        if self._anybody and self._ledgers and self._with.tryouts:
            self._try_out(state, orders)

    def _seat_all(self, state: State, orders: Orders) -> bool:
        """Whoever can be seated, in turn. Whether anybody still waits."""
        while (program := self._turns.first(state, orders.now, self.hosts.full())) is not None:
            host_leavers = self.hosts.who_leaves(state, program)
            if host_leavers is None:
                continue  # its host is full, then
            if not self._seat(state, orders, program, host_leavers):
                return True
        return False

    def next_review_s(self, state: State) -> float | None:
        if not state.queue or not self._ledgers:
            return None
        times_s = [self._looked_s + LOOK_AGAIN_S]
        if (leaves_s := self._needs.departures.next_s) is not None:
            times_s.append(leaves_s)
        if (end_s := self._tryouts.next_end_s(self._now)) is not None:
            times_s.append(end_s)
        return min(times_s)

    def bound_tokens(self, engine: str) -> float:
        """What the predicted peak of an engine's programs has to stay within, with a new one."""
        ledger = self._ledgers[engine]
        factor = 1.0
        if self._with.overcommit:
            busy_s = ledger.engine.busy_s
            factor = self._overcommit[engine].factor(len(ledger), self._waited_s, busy_s)
        return ledger.room_tokens * factor

    def ledgers(self) -> Iterator[tuple[str, Ledger, float]]:
        """Of each engine: name, ledger, and the bound as it was when it was last asked for."""
        for name, ledger in sorted(self._ledgers.items()):
            factor = self._overcommit[name].latest if self._with.overcommit else 1.0
            yield name, ledger, ledger.room_tokens * factor

    def first_in_line(self, state: State) -> Program | None:
        """Who holds up those behind it, as last looked up."""
        return self._turns.standing_first(state)

    def _turn_away(self, state: State, orders: Orders) -> None:
        """Backpressure: who came last is told to come back, where the line is too long."""
        came, self._came = self._came, []
        if len(state.queue) <= self._max_waiting:
            return
        for program in came:
            if program.name in state.queue and not program.calls_done:
                orders.reject(program, RETRY_AFTER_S, f"{self._max_waiting} programs wait already")

    def _seat(self, state: State, orders: Orders, program: Program, host_leavers: list[Program]) -> bool:
        """``host_leavers`` leave in any case, if it is seated."""
        if self._openings.first(program, self._ledgers):
            self._looked_s = orders.now
        if not (engines := self._openings.engines()):
            return False
        forecast = self._needs.forecast(state, program)
        for engine in self._needs.by_room(program, engines):
            self._openings.refused(engine)
            ledger = self._ledgers[engine]
            leavers = self._who_leaves(state, ledger, program, forecast, host_leavers)
            if leavers is None:
                continue
            for leaver in leavers:
                self._pause(
                    state, orders, leaver, "its gap lasts longer than its seat is worth, and others wait"
                )
            self._turns.seated(program, orders.now)
            self._admit(state, orders, program, engine, forecast, on_trial=False)
            self._openings.anew()
            return True
        return False

    def _try_out(self, state: State, orders: Orders) -> None:
        """Newcomers that found no seat, as long as there is room that nobody needs."""
        while (program := self._tryouts.next(state)) is not None:
            self._trial_openings.first(program, self._ledgers)
            if not (engines := self._trial_openings.engines()):
                return
            forecast = self._needs.forecast(state, program)
            engine = self._needs.by_room(program, engines)[0]
            room_tokens = self._ledgers[engine].room_tokens
            if forecast.now_tokens > MOST_OF_ONE * room_tokens or not self._turns.may_try(state, program):
                self._tryouts.passed_over(program)
            elif self._has_room_to_try(state, program, engine, forecast):
                self._turns.tried()
                self._admit(state, orders, program, engine, forecast, on_trial=True)
            else:
                self._trial_openings.refused(engine)

    def _has_room_to_try(self, state: State, program: Program, engine: str, forecast: Forecast) -> bool:
        ledger = self._ledgers[engine]
        trials = self._tryouts.on_trial(state, engine)
        tried_tokens = forecast.now_tokens + sum(ledger.tokens_of(trial) for trial in trials)
        return (
            tried_tokens <= MOST_SHARE * ledger.room_tokens
            and ledger.need_with(forecast, set()) <= FULL_SHARE * ledger.room_tokens
            and self.hosts.has_room(state, program)
        )

    def _admit(
        self,
        state: State,
        orders: Orders,
        program: Program,
        engine: str,
        forecast: Forecast,
        *,
        on_trial: bool,
    ) -> None:
        self._tryouts.seated(program, orders.now, on_trial=on_trial)
        self._put(program, engine, forecast, state)
        ledger = self._ledgers[engine]
        need, room = ledger.need_tokens, ledger.room_tokens
        why = "on trial: " if on_trial else ""
        orders.admit(program, engine, f"{why}with it programs need {need:,} of {room:,} tokens")
        self.hosts.recount(state, program)

    def _pause(self, state: State, orders: Orders, program: Program, reason: str) -> None:
        assert program.seat is not None
        self._tryouts.unseated(program)
        self._drop(program, program.seat)
        orders.pause(program, reason)
        self.hosts.recount(state, program)

    def check_invariants(self, state: State) -> None:
        """Raises AssertionError unless ledgers hold exactly who is seated."""
        self.hosts.check_invariants(state)
        self._tryouts.check_invariants(state)
        for name, ledger in self._ledgers.items():
            ledger.check_invariants()
            assert set(ledger.programs()) == set(state.seats[name]), f"{name}: its seats disagree"

    def candidates(self, state: State, program: Program) -> list[str]:
        """Where its KV may be first, then by room."""
        return self._needs.by_room(program, self._ledgers)

    def forecast(self, state: State, program: Program) -> Forecast:
        """What it will need."""
        return self._needs.forecast(state, program)

    def forecasts(self, state: State, engine: str) -> list[Forecast]:
        """Of who sits there; who ends last is first."""
        return self._needs.forecasts(state, engine)

    def _who_leaves(
        self,
        state: State,
        ledger: Ledger,
        program: Program,
        forecast: Forecast,
        host_leavers: list[Program],
    ) -> list[Program] | None:
        """Who has to leave for the program to be seated, its host's leavers among them; None if it
        cannot be."""
        leave = [leaver.name for leaver in host_leavers]
        here = {leaver.name for leaver in host_leavers if leaver.seat == ledger.engine.name}
        leavers = [name for name in ledger.leavers() if name not in here] if self._with.leaving else []
        bound_tokens = self.bound_tokens(ledger.engine.name)

        def fits(leaving: int) -> bool:
            """With so many leavers gone. If it holds for some, it holds for more."""
            without = here.union(leavers[:leaving])
            if len(without) == len(ledger):
                return True
            share = ledger.need_with(forecast, without) / ledger.room_tokens
            if share > FULL_SHARE:
                return False
            if self._turns.was_seated(program) or share <= LITTLE_SHARE or not self._with.peak:
                return True
            if self._turns.presses(program, self._now):
                return True
            return ledger.peak_with(forecast, without) <= bound_tokens

        if not fits(0):
            if not leavers or not fits(len(leavers)):
                return None
            leave += leavers[: 1 + bisect_left(range(1, len(leavers)), True, key=fits)]
        return sorted((state.programs[name] for name in leave), key=self._turns.of)

    def _relieve(self, state: State, orders: Orders, ledger: Ledger) -> None:
        def index(program: Program) -> float:
            assert program.gap_since_s is not None
            return index_at(self._foresight.gap(state, program), orders.now - program.gap_since_s)

        engine = ledger.engine
        for trial in [trial for trial in self._tryouts.on_trial(state, engine.name) if trial.in_gap]:
            if ledger.need_tokens > ledger.room_tokens:
                self._pause(state, orders, trial, "on trial, and contexts outgrew the engine")
        away = [p for p in state.seats[engine.name].values() if p.gap_since_s is not None]
        for program in sorted(away, key=lambda p: (index(p), -p.order)):
            over = ledger.need_tokens - ledger.room_tokens
            if over <= 0 or len(ledger) == 1:
                return
            self._overcommit[engine.name].outgrown(ledger.tokens_of(program) / engine.restore_tokens_per_s)
            self._pause(state, orders, program, f"contexts outgrew the engine by {over:,} tokens")
