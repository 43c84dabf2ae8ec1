"""What the core expects, for people: how near engines come to needing more KV than they have, and why
programs wait.

Queries only. Nothing here decides, learns or changes anything, and nothing is computed unless somebody
asks. What is expected is what admission goes by (``forecast.py``); under policies that predict nothing, what
the same models say of all programs whose KV an engine should hold.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from agentsched.core.core import Core
from agentsched.core.forecast import Forecast
from agentsched.core.foresight import Learned
from agentsched.core.policies.seats import FULL_SHARE, Seats
from agentsched.core.state import Program, State


class Point(NamedTuple):
    """The need at a time from now, counted in calls of each program."""

    calls: float
    tokens: float


class Outlook(NamedTuple):
    """One engine. ``room_tokens``: KV for what programs do not share; ``bound_tokens``: what the peak has to
    stay within for newcomers to be let in (the room, times the overcommit), None if nobody is held to it.
    ``price``, 1/s: what a second of holding KV has to save to be worth it."""

    engine: str
    room_tokens: int
    need_tokens: int
    peak: Point
    bound_tokens: float | None
    price: float | None


class Wait(NamedTuple):
    """Why a program has no seat.

    ``engine`` none is attached; ``host`` the memory of its tools' host; ``now`` what is held already leaves
    no room; ``peak`` with it the predicted peak exceeds the bound, first after ``calls`` calls of each
    program; ``line`` ``behind`` stands before it; ``policy`` the policy does not say.
    """

    program: str
    cause: Literal["engine", "host", "now", "peak", "line", "policy"]
    behind: str = ""
    need_tokens: float = 0.0
    bound_tokens: float = 0.0
    calls: float = 0.0


def outlooks(core: Core) -> list[Outlook]:
    """Of every attached engine, by name. Takes n log n for n seated programs."""
    state, admission = core.state, core.policy.admission
    if isinstance(admission, Seats):
        return [
            _outlook(name, ledger.room_tokens, admission.forecasts(state, name), bound_tokens, ledger.price())
            for name, ledger, bound_tokens in admission.ledgers()
        ]
    foresight = Learned()
    found = []
    for name, engine in sorted(state.engines.items()):
        here = (program for program in state.programs.values() if program.home == name)
        forecasts = [foresight.forecast(state, program) for program in here]
        found.append(_outlook(name, engine.capacity_tokens, forecasts, None, None))
    return found


def waits(core: Core) -> list[Wait]:
    """Every program that waits for a seat, in order of arrival."""
    state, admission = core.state, core.policy.admission
    waiting = state.waiting()
    if not state.engines:
        return [Wait(program.name, "engine") for program in waiting]
    if not isinstance(admission, Seats):
        return [Wait(program.name, "policy") for program in waiting]
    first = admission.first_in_line(state)
    full = admission.hosts.full()
    return [_wait(state, admission, program, first, full) for program in waiting]


def _wait(state: State, seats: Seats, program: Program, first: Program | None, full: frozenset[str]) -> Wait:
    if program.host in full:
        return Wait(program.name, "host")
    if first is not None and program is not first:
        return Wait(program.name, "line", behind=first.name)
    return _refusal(state, seats, program)


def _refusal(state: State, seats: Seats, program: Program) -> Wait:
    """Of the engine where least is missing."""
    forecast = seats.forecast(state, program)
    found: list[tuple[float, Wait]] = []
    for name, ledger, bound_tokens in seats.ledgers():
        now_tokens, room_tokens = ledger.need_with(forecast, set()), FULL_SHARE * ledger.room_tokens
        if now_tokens > room_tokens:
            wait = Wait(program.name, "now", need_tokens=now_tokens, bound_tokens=room_tokens)
            found.append((now_tokens / room_tokens, wait))
            continue
        forecasts = seats.forecasts(state, name)
        insort(forecasts, forecast, key=lambda one: -one.calls_left)
        peak = _peak(forecasts)
        calls = overflow_calls(forecasts, bound_tokens)
        wait = Wait(program.name, "peak", need_tokens=peak.tokens, bound_tokens=bound_tokens, calls=calls)
        found.append((peak.tokens / bound_tokens, wait))
    return min(found, key=lambda one: one[0])[1]


def overflow_calls(forecasts: Sequence[Forecast], bound_tokens: float) -> float:
    """After how many calls of each program the need exceeds the bound for the first time; where it never
    does, when it is at its most. ``forecasts``: who ends last is first."""
    now_tokens = sum(forecast.now_tokens for forecast in forecasts)
    growth = sum(forecast.growth_tokens for forecast in forecasts)
    for ending in reversed(forecasts):
        if now_tokens + growth * ending.calls_left > bound_tokens:
            return max(0.0, (bound_tokens - now_tokens) / growth) if growth > 0 else 0.0
        now_tokens -= ending.now_tokens
        growth -= ending.growth_tokens
    return _peak(forecasts).calls


def _outlook(
    engine: str,
    room_tokens: int,
    forecasts: Iterable[Forecast],
    bound_tokens: float | None,
    price: float | None,
) -> Outlook:
    ordered = sorted(forecasts, key=lambda forecast: -forecast.calls_left)
    need_tokens = sum(forecast.now_tokens for forecast in ordered)
    return Outlook(engine, room_tokens, need_tokens, _peak(ordered), bound_tokens, price)


def _peak(forecasts: Iterable[Forecast]) -> Point:
    """The largest need, just before some ending (``forecast.peak_by_ending``). Who ends last is first."""
    now_tokens = growth = 0.0
    peak = Point(0.0, 0.0)
    for ending in forecasts:
        now_tokens += ending.now_tokens
        growth += ending.growth_tokens
        here = now_tokens + growth * ending.calls_left
        if here > peak.tokens:
            peak = Point(ending.calls_left, here)
    return peak
