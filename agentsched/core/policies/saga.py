"""SAGA: affinity with stealing, eviction weighted by predicted reuse, TTL by tool, fair share.

Source: the SAGA paper. Its parts, and how they are said in standing orders:

* **Eviction.** What is evicted first has the highest score .3 recency + .5 (1 - P_reuse) + .2 size.
  The engine evicts the lowest value, so the value of a program's KV is 1 - score. Recency is time
  since the gap began over ``RECENCY_SPAN_S``, P_reuse the probability that the program returns within
  ``REUSE_WITHIN_S`` given how long it has been away (empirical, by tool), size its context over the
  engine's KV. All three are functions of time or constants, so the score goes out as a step
  function, taken at the beginning of each step.
* **TTL.** For P95 of the tool's durations x (1 - 0.5 m), at most 300 s, KV is protected: its value is
  higher by 1, so it goes only after all that is not protected. m = max(0, (used - .7) / .2), used
  being the contexts of the engine's programs over its KV, at most 1.
* **Affinity.** A program stays with the engine that has its KV while that engine's load (live calls
  over batch slots) is below 0.8; past that it goes to the least loaded engine below 0.8, if any.
* **Stealing.** Every 100 ms, an engine that has idled for 100 ms, or is loaded less than half as much
  as the most loaded one, takes a program from it if calls are queued there.
* **Order.** Agent Fair Share (``fair_share.py``). Nobody is held back: SAGA has no gate.
* Prefetch is left out: KV stays on the device here, so there is nothing to fetch back.

Where the paper is silent, or standing orders say less than a system of one's own, the choice is the
baseline's best: past its TTL KV stays as long as nobody needs the space; KV of a call that is queued
is protected; P_reuse looks 30 s ahead; a program moves only in a gap, with its next call
(a queued call stays where it is); load is that of contexts over KV where engines are compared for
stealing, since numbers of calls change by the second and moving for them cost 4 % of mean completion
time; the thief takes who will give it work soonest at the least recomputation, one at a time, and
waits for it for 5 s at most.
"""

from __future__ import annotations

from agentsched.core import events as ev
from agentsched.core.decisions import Worth
from agentsched.core.orders import Orders
from agentsched.core.policies.engine_load import EngineLoad, EngineLoads
from agentsched.core.policies.fair_share import CYCLE_S, DeadlineByShare, FairShare
from agentsched.core.policies.fcfs_lru import AdmitAll
from agentsched.core.policies.parts import Policy
from agentsched.core.state import Program, State

RECENCY_WEIGHT, REUSE_WEIGHT, SIZE_WEIGHT = 0.3, 0.5, 0.2
MAX_TTL_S = 300.0
RECENCY_SPAN_S = 300.0
REUSE_WITHIN_S = 30.0
STEPS_S = (0.0, 1.0, 4.0, 15.0, 60.0, 200.0)
SHORTEST_STEP_S = 1e-3
FORGET_AFTER_S = 600.0
QUEUED_LEASE_S = 600.0
AFFINITY_LOAD = 0.8
IDLE_S = 0.1
IMBALANCE = 2.0
STEAL_PATIENCE_S = 5.0


def score(away_s: float, reuse: float, size: float) -> float:
    """SAGA's eviction score, 0 to 1: the highest goes first. ``reuse`` and ``size`` are shares of 1."""
    recency = min(1.0, away_s / RECENCY_SPAN_S)
    return RECENCY_WEIGHT * recency + REUSE_WEIGHT * (1.0 - reuse) + SIZE_WEIGHT * min(1.0, size)


def tool_ttl_s(p95_s: float, used: float) -> float:
    """How long KV is protected while a tool runs; ``used`` is the share of the KV in use."""
    pressure = max(0.0, (min(1.0, used) - 0.7) / 0.2)
    return min(MAX_TTL_S, p95_s * (1.0 - 0.5 * pressure))


class ReuseWeighted:
    """Retention by 1 - score, and 1 more within the tool's TTL."""

    def __init__(self, loads: EngineLoads) -> None:
        self._loads = loads

    def terms(self, orders: Orders, engine: str) -> None:
        return None

    def away(self, state: State, orders: Orders, program: Program) -> None:
        if program.seat is None or program.gap_since_s is None:
            return
        load = self._loads.engines[program.seat]
        samples = state.gaps.samples(program.gap_key)
        ttl_s = tool_ttl_s(samples[min(len(samples) - 1, int(0.95 * len(samples)))], load.kv_share)
        steps = self._steps(state, program, orders.now - program.gap_since_s, ttl_s, load)
        reason = (
            f"{program.gap_key or 'no tool'}: protected for {ttl_s:.1f} s, value {steps[0].value:.2f} now"
        )
        orders.retain(program, program.seat, steps, steps[-1].until_s, reason)

    def returned(self, state: State, orders: Orders, program: Program) -> None:
        """Its next call is queued: reuse is certain."""
        if program.seat is None or not program.context_tokens:
            return
        size = program.context_tokens / self._loads.engines[program.seat].capacity_tokens
        until_s = orders.now + QUEUED_LEASE_S
        worth = Worth(until_s=until_s, value=2.0 - score(0.0, 1.0, size))
        orders.retain(program, program.seat, (worth,), until_s, "its next call is queued: reuse is certain")

    def paused(self, state: State, orders: Orders, program: Program, engine: str) -> None:
        orders.release(program, engine, "it is paused")

    def _steps(
        self, state: State, program: Program, elapsed_s: float, ttl_s: float, load: EngineLoad
    ) -> tuple[Worth, ...]:
        gap_since_s = program.gap_since_s or 0.0
        size = program.context_tokens / load.capacity_tokens
        begins = [elapsed_s]
        for mark_s in sorted((*STEPS_S, ttl_s)):
            if mark_s > begins[-1] + SHORTEST_STEP_S:
                begins.append(mark_s)
        ends = [*begins[1:], max(FORGET_AFTER_S, elapsed_s + REUSE_WITHIN_S)]
        steps = []
        for begin_s, end_s in zip(begins, ends, strict=True):
            reuse = state.gaps.probability_within(program.gap_key, begin_s + REUSE_WITHIN_S, begin_s)
            value = 1.0 - score(begin_s, reuse, size) + (1.0 if begin_s < ttl_s else 0.0)
            steps.append(Worth(until_s=gap_since_s + end_s, value=value))
        return tuple(steps)


class CacheAffinity:
    """The engine that has the program's KV while its load is below 0.8, else the least loaded."""

    def __init__(self, loads: EngineLoads) -> None:
        self._loads = loads

    def candidates(self, state: State, program: Program) -> list[str]:
        names = self._loads.least()
        if program.home is None or program.home not in self._loads.engines:
            return names
        if self.load(program.home) >= AFFINITY_LOAD and any(self.load(n) < AFFINITY_LOAD for n in names):
            return sorted(names, key=self.load)
        return sorted(names, key=lambda name: name != program.home)

    def load(self, engine: str) -> float:
        return self._loads.engines[engine].share


class SagaAdmission:
    """Everybody is let in; programs in a gap move off loaded engines, and to idle ones."""

    def __init__(self, loads: EngineLoads, placement: CacheAffinity) -> None:
        self._loads = loads
        self._placement = placement
        self._everybody = AdmitAll(placement)
        self._left: Program | None = None
        self._looked_s = float("-inf")
        self._coming: dict[str, tuple[Program, int, float]] = {}  # thief: who, calls it had done, when

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        ended = isinstance(event, ev.CallFinished) and subject is not None and subject.in_gap
        self._left = subject if ended and len(self._loads.engines) > 1 else None

    def review(self, state: State, orders: Orders) -> None:
        self._everybody.review(state, orders)
        for program in orders.admitted:
            self._loads.recount(program, orders.now)
        if self._left is not None:
            self._leave_overload(state, orders, self._left)
        if self._loads.queued and len(self._loads.engines) > 1 and orders.now >= self._looked_s + CYCLE_S:
            self._looked_s = orders.now
            self._steal(state, orders)

    def next_review_s(self, state: State) -> float | None:
        if not self._loads.queued or len(self._loads.engines) < 2:
            return None
        return self._looked_s + CYCLE_S

    def _leave_overload(self, state: State, orders: Orders, program: Program) -> None:
        if program.seat is not None and self._placement.load(program.seat) >= AFFINITY_LOAD:
            best = self._placement.candidates(state, program)[0]
            if best != program.seat:
                self._move(orders, program, best, f"{program.seat} is loaded to {AFFINITY_LOAD:.0%} or more")

    def _steal(self, state: State, orders: Orders) -> None:
        engines = self._loads.engines
        busiest = max(engines, key=lambda name: (engines[name].queued > 0, engines[name].kv_share))
        for thief, load in engines.items():
            idle = load.idle_since_s is not None and orders.now - load.idle_since_s >= IDLE_S
            uneven = IMBALANCE * load.kv_share < engines[busiest].kv_share
            if thief == busiest or not (idle or uneven) or self._awaits(thief, orders.now):
                continue
            program = self._cheapest(state, orders.now, busiest)
            if program is None:
                return
            self._coming[thief] = (program, program.calls_done, orders.now)
            self._move(
                orders, program, thief, f"{thief} {'idles' if idle else 'has less than half the contexts'}"
            )

    def _awaits(self, thief: str, now: float) -> bool:
        """Whether it stole a program whose call has yet to come."""
        if thief not in self._coming:
            return False
        program, calls_done, stolen_s = self._coming[thief]
        still_away = program.seat == thief and program.in_gap and program.calls_done == calls_done
        if still_away and now - stolen_s < STEAL_PATIENCE_S:
            return True
        del self._coming[thief]
        return False

    def _cheapest(self, state: State, now: float, engine: str) -> Program | None:
        """Who in a gap would be computing elsewhere soonest: the rest of its gap, and what it held."""
        rate = state.engines[engine].prefill_tokens_per_s

        def ready_s(program: Program) -> tuple[float, int]:
            away_s = now - program.gap_since_s if program.gap_since_s is not None else 0.0
            left_s = state.gaps.mean_remaining_s(program.gap_key, away_s)
            return (left_s + program.held_tokens / rate, program.order)

        away = (p for p in state.seated(engine) if p.in_gap and p.gap_since_s is not None)
        return min(away, key=ready_s, default=None)

    def _move(self, orders: Orders, program: Program, engine: str, reason: str) -> None:
        orders.pause(program, reason)
        orders.admit(program, engine, reason)
        self._loads.recount(program, orders.now)


def saga() -> Policy:
    """A new ``saga`` policy."""
    loads, fair_share = EngineLoads(), FairShare()
    placement = CacheAffinity(loads)
    admission = SagaAdmission(loads, placement)
    return Policy(
        name="saga",
        admission=admission,
        rank=DeadlineByShare(fair_share),
        retention=ReuseWeighted(loads),
        placement=placement,
        learners=(loads, fair_share, admission),
    )
