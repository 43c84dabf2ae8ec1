"""Continuum: program-level FCFS, and KV pinned through tool calls with a tool-aware TTL.

Source: the Continuum paper. Order: programs that were preempted first, then those that return
within their TTL, then by arrival of the program. After a call that ends in a tool call f with r
tokens held, KV is pinned for

    tau* = argmax over tau of  P(tau, f) * (T * eta + reload(r)) - tau

where P(., f) is the empirical distribution of f's durations (last 100; pooled, then a prior, while f
has few), T the mean queueing delay of programs that had lost their KV, eta = -corr(k, N - k) over
calls done and calls left, and reload(r) the time to prefill r tokens. When nothing can run the
program that arrived last is unpinned: later programs are worth a hair less, and a stuck engine
breaks the lowest lease first.

The paper is silent on eta and T before there is data; both start in the baseline's favour: eta = 1,
T = 0 until a program that lost its KV has waited. A program that returns within its TTL stays pinned
until it ends its next call: else its KV could go while it is first in the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import sqrt
from statistics import fmean

from agentsched.core import events as ev
from agentsched.core.decisions import Worth
from agentsched.core.orders import Orders
from agentsched.core.policies.fcfs_lru import AdmitAll, Affinity
from agentsched.core.policies.parts import Policy, RankKey
from agentsched.core.state import Program, State

_TIER = 1e9  # more than there are programs: tiers never mix
QUEUED_LEASE_S = 600.0


class TurnCorrelation:
    """corr(calls done, calls left) over the last turns, from running sums of whole numbers."""

    TURNS = 1000

    def __init__(self) -> None:
        self._turns: deque[tuple[int, int]] = deque()
        self._n = self._x = self._y = self._xx = self._xy = self._yy = 0

    def add(self, done: int, left: int) -> None:
        if len(self._turns) == self.TURNS:
            self._count(*self._turns.popleft(), -1)
        self._turns.append((done, left))
        self._count(done, left, 1)

    def value(self) -> float | None:
        """None if one of the two never varied: there is no correlation to speak of."""
        spread_x = self._n * self._xx - self._x**2
        spread_y = self._n * self._yy - self._y**2
        if not spread_x or not spread_y:
            return None
        return (self._n * self._xy - self._x * self._y) / sqrt(spread_x * spread_y)

    def _count(self, x: int, y: int, sign: int) -> None:
        self._n += sign
        self._x += sign * x
        self._y += sign * y
        self._xx += sign * x * x
        self._xy += sign * x * y
        self._yy += sign * y * y


class Experience:
    """T and eta, and who is pinned until when."""

    def __init__(self) -> None:
        self.pinned_until_s: dict[str, float] = {}
        self._delays_s: deque[float] = deque(maxlen=100)
        self._turns = TurnCorrelation()

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        match event:
            case ev.CallStarted() if subject is not None:
                call = state.calls[event.call]
                if subject.calls_done and event.cached_tokens < subject.context_tokens // 2:
                    self._delays_s.append(now - call.arrived_s)
            case ev.ProgramClosed() if subject is not None:
                self.pinned_until_s.pop(subject.name, None)
                total = subject.calls_done
                for done in range(1, total + 1):
                    self._turns.add(done, total - done)
            case _:
                pass

    @property
    def queueing_delay_s(self) -> float:
        """T: mean wait of calls whose program had lost its KV."""
        return fmean(self._delays_s) if self._delays_s else 0.0

    @property
    def eta(self) -> float:
        """-corr(calls done, calls left), at least 0."""
        value = self._turns.value()
        return 1.0 if value is None else max(0.0, -value)


class ProgramOrder:
    """Preempted, then pinned, then by arrival of the program."""

    def __init__(self, experience: Experience) -> None:
        self._experience = experience

    def key(self, state: State, program: Program, now: float, *, preempted: bool) -> RankKey | None:
        if preempted:
            return RankKey(program.order, "preempted: first of all")
        if now <= self._experience.pinned_until_s.get(program.name, float("-inf")):
            return RankKey(_TIER + program.order, "back within its TTL: before programs that are not")
        return RankKey(2 * _TIER + program.order, "by arrival of the program")


class ToolTTL:
    """Pin for the TTL that pays most."""

    def __init__(self, experience: Experience) -> None:
        self._experience = experience

    def terms(self, orders: Orders, engine: str) -> None:
        return None

    def away(self, state: State, orders: Orders, program: Program) -> None:
        if program.seat is None or program.gap_since_s is None or not program.gap_key:
            return
        engine = state.engine(program.seat)
        reload_s = program.context_tokens / engine.prefill_tokens_per_s
        gain_s = self._experience.queueing_delay_s * self._experience.eta + reload_s
        ttl_s = best_ttl_s(state.gaps.samples(program.gap_key), gain_s)
        until_s = program.gap_since_s + ttl_s
        self._experience.pinned_until_s[program.name] = until_s
        if ttl_s > 0 and until_s > orders.now:
            reason = f"{program.gap_key} usually returns: pinned for {ttl_s:.1f} s"
            self._pin(orders, program, program.seat, until_s, reason)

    def returned(self, state: State, orders: Orders, program: Program) -> None:
        if program.seat is not None and orders.now <= self._experience.pinned_until_s.get(program.name, 0.0):
            until_s = orders.now + QUEUED_LEASE_S
            self._pin(orders, program, program.seat, until_s, "back within its TTL: pinned until it ran")

    def paused(self, state: State, orders: Orders, program: Program, engine: str) -> None:
        orders.release(program, engine, "it is paused")

    def _pin(self, orders: Orders, program: Program, engine: str, until_s: float, reason: str) -> None:
        """A later program is worth a hair less: it is unpinned first when nothing can run."""
        worth = Worth(until_s=until_s, value=1.0 - min(program.order, 10**6) * 1e-7)
        orders.retain(program, engine, (worth,), until_s, reason)


def best_ttl_s(durations_s: Sequence[float], gain_s: float) -> float:
    """argmax over tau of P(tau) * gain - tau; 0 if no TTL pays. ``durations_s`` ascending."""

    best_s, best_score = 0.0, 0.0
    for count, tau_s in enumerate(durations_s, 1):
        score = count / len(durations_s) * gain_s - tau_s
        if score > best_score:
            best_s, best_score = tau_s, score
    return best_s


def continuum() -> Policy:
    """A new ``continuum`` policy."""
    experience = Experience()
    placement = Affinity()
    return Policy(
        name="continuum",
        admission=AdmitAll(placement),
        rank=ProgramOrder(experience),
        retention=ToolTTL(experience),
        placement=placement,
        learners=(experience,),
    )
