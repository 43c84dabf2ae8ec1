"""Admission by predicted future peak, in program order, with the overcommit found online.

Nothing thrashes like admitting one program too many: past the point where the foreground programs'
KV fits, every return finds its KV gone, and throughput falls to a third and stays there. So a
program gets a seat only while the predicted peak over time of all seated programs, with it, fits
into the engine's KV times its overcommit (``forecast.predicted_peak``). Four rules around that:

* Strictly in program order: who cannot be seated holds back who came later. A first program is
  always seated, so somebody can always run to the end, and everybody's turn comes.
* A program whose gap has outlasted its patience gives its seat to whoever waits. It keeps its place
  in the order, and is the first to be seated again.
* If the contexts outgrow the engine all the same, the youngest program in a gap is paused, before
  the engine has to throw away KV that somebody needs.
* Overcommit rises while an engine has time to spare and programs wait, and falls when it is full
  and repeats its work. Programs are away much of the time, so some is always right; past the right
  amount everything collapses quickly, so it errs low.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from agentsched.core import events as ev
from agentsched.core.forecast import forecast, predicted_peak
from agentsched.core.orders import Orders
from agentsched.core.policies.parts import Placement
from agentsched.core.state import EngineState, Program, State

MIN_PATIENCE_S = 60.0
RETRY_AFTER_S = 30.0


@dataclass(slots=True)
class _Window:
    """An engine's counters when the window began."""

    since_s: float
    busy_s: float
    prefilled_tokens: int
    recomputed_tokens: int


class Overcommit:
    """One factor an engine, moved once a window: up while there is time to spare and programs wait,
    down by half of what is over 1 while the engine is full and much of its work is repeated.

    Recomputing in time that would be idle delays the calls concerned but costs no throughput, so it
    alone is no reason to go down; a full engine that repeats its work is on its way over the cliff.
    """

    WINDOW_S = 5.0
    RISE = 0.1
    MAX = 1.8
    SPARE = 0.8
    FULL = 0.9
    WASTE = 0.1

    def __init__(self) -> None:
        self._factor: dict[str, float] = {}
        self._windows: dict[str, _Window] = {}

    def factor(self, engine: str) -> float:
        return self._factor.get(engine, 1.0)

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        for engine in state.engines.values():
            window = self._windows.get(engine.name)
            if window is not None and window.busy_s <= engine.busy_s:
                if now - window.since_s < self.WINDOW_S:
                    continue
                self._move(engine, window, now, wanted=bool(state.waiting()))
            self._windows[engine.name] = _Window(
                now, engine.busy_s, engine.prefilled_tokens, engine.recomputed_tokens
            )

    def _move(self, engine: EngineState, window: _Window, now: float, *, wanted: bool) -> None:
        factor = self.factor(engine.name)
        busy = (engine.busy_s - window.busy_s) / (now - window.since_s)
        prefilled = engine.prefilled_tokens - window.prefilled_tokens
        waste = (engine.recomputed_tokens - window.recomputed_tokens) / max(1, prefilled)
        if busy > self.FULL and waste > self.WASTE:
            self._factor[engine.name] = 1.0 + (factor - 1.0) / 2
        elif busy < self.SPARE and wanted:
            self._factor[engine.name] = min(self.MAX, factor * (1.0 + self.RISE * (self.SPARE - busy)))


class PeakAdmission:
    """The gate."""

    def __init__(self, placement: Placement, overcommit: Overcommit, *, max_waiting: int = 10_000) -> None:
        self._placement = placement
        self._overcommit = overcommit
        self._max_waiting = max_waiting

    def review(self, state: State, orders: Orders) -> None:
        for engine in state.engines:
            self._relieve(state, orders, engine)
        waiting = deque(state.waiting())
        while waiting and self._seat(state, orders, waiting[0]):
            waiting.popleft()
        for program in islice(waiting, self._max_waiting, None):
            orders.reject(program, RETRY_AFTER_S, f"{self._max_waiting} programs wait already")

    def next_review_s(self, state: State) -> float | None:
        if not state.waiting():
            return None
        ends = [self._patience_ends_s(state, p) for p in state.programs.values() if p.foreground]
        return min((end for end in ends if end is not None), default=None)

    def bound_tokens(self, state: State, engine: str) -> float:
        """What the predicted peak has to stay within."""
        return state.engines[engine].capacity_tokens * self._overcommit.factor(engine)

    def _seat(self, state: State, orders: Orders, program: Program) -> bool:
        for engine in self._placement.candidates(state, program):
            if self._fits(state, orders, program, engine):
                return True
        for engine in self._placement.candidates(state, program):
            for idler in self._idlers(state, orders.now, engine):
                if idler.order != program.order:
                    orders.pause(idler, "its gap has outlasted its patience while others wait")
                if self._fits(state, orders, program, engine):
                    return True
        return False

    def _fits(self, state: State, orders: Orders, program: Program, engine: str) -> bool:
        seated = state.seated(engine)
        bound = self.bound_tokens(state, engine)
        peak = predicted_peak([forecast(state, p) for p in [*seated, program]])
        if seated and peak > bound:
            return False
        orders.admit(program, engine, f"predicted peak {peak:,.0f} of {bound:,.0f} tokens with it")
        return True

    def _idlers(self, state: State, now: float, engine: str) -> list[Program]:
        """Seated programs past their patience, longest away first."""
        late = []
        for program in state.seated(engine):
            ends_s = self._patience_ends_s(state, program)
            if ends_s is not None and ends_s <= now:
                late.append(program)
        return sorted(late, key=lambda p: (p.gap_since_s, p.order))

    def _patience_ends_s(self, state: State, program: Program) -> float | None:
        if program.gap_since_s is None:
            return None
        durations = state.gaps.samples(program.gap_key)
        p95_s = durations[min(len(durations) - 1, int(0.95 * len(durations)))]
        return program.gap_since_s + max(MIN_PATIENCE_S, 2 * p95_s)

    def _relieve(self, state: State, orders: Orders, engine: str) -> None:
        seated = state.seated(engine)
        need = sum(p.expected_context_tokens for p in seated)
        limit = self.bound_tokens(state, engine)
        for program in reversed(seated[1:]):
            if need <= limit:
                return
            if program.in_gap:
                orders.pause(program, f"contexts outgrew the engine by {need - limit:,.0f} tokens")
                need -= program.expected_context_tokens
