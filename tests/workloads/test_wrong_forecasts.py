"""Robust when wrong: fed garbage, ours is never worse than fcfs-lru by more than 5 %."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from random import Random
from statistics import fmean

import pytest

from agentsched.core import Core, make_policy
from agentsched.core.forecast import Forecast
from agentsched.core.foresight import GapCurve, Learned
from agentsched.core.policies import Policy
from agentsched.core.policies.agentsched import _policy
from agentsched.core.state import Program, State
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.cost import PROFILES
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.generate import generate
from agentsched.workloads.meter import Meter
from agentsched.workloads.scripts import Script
from agentsched.workloads.selection import draw
from agentsched.workloads.simulator import Simulation

PROGRAMS = 150
CASES = {
    # Programs at once that make pressures of 0.5 and 1; and few programs, large against the KV.
    "swe-idle": ("continuum-swe", 200_000, 2),
    "swe-full": ("continuum-swe", 200_000, 5),
    "web-few": ("saga-web", 100_000, 3),
}
INF = float("inf")


class Wrong(Learned):
    """Answers what it was made to answer, and where that is None what was learned."""

    def __init__(
        self,
        growth_tokens: float | None = None,
        calls_left: float | None = None,
        curve: GapCurve | None = None,
        now: Callable[[int], int] = lambda tokens: tokens,
    ) -> None:
        super().__init__()
        self._growth_tokens, self._calls_left, self._wrong_curve, self._now = (
            growth_tokens,
            calls_left,
            curve,
            now,
        )

    def forecast(self, state: State, program: Program) -> Forecast:
        honest = super().forecast(state, program)
        return Forecast(
            self._now(honest.now_tokens),
            honest.growth_tokens if self._growth_tokens is None else self._growth_tokens,
            honest.calls_left if self._calls_left is None else self._calls_left,
        )

    def gap(self, state: State, program: Program) -> GapCurve:
        return super().gap(state, program) if self._wrong_curve is None else self._wrong_curve


class Dice(Learned):
    """Answers anything, seeded."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = Random(seed)

    def forecast(self, state: State, program: Program) -> Forecast:
        now_tokens = super().forecast(state, program).now_tokens
        return Forecast(now_tokens, 10 ** self._random.uniform(0, 6), 10 ** self._random.uniform(0, 4))

    def gap(self, state: State, program: Program) -> GapCurve:
        return tuple((mark_s, 10 ** self._random.uniform(-4, 3)) for mark_s in (0.0, 1.0, 10.0, 100.0))


class Reversed(Learned):
    """The longer a gap has lasted, the sooner it believes it to end."""

    def gap(self, state: State, program: Program) -> GapCurve:
        curve = super().gap(state, program)
        values = [value for _, value in reversed(curve)]
        return tuple((mark_s, value) for (mark_s, _), value in zip(curve, values, strict=True))


NEVER: GapCurve = ((0.0, 0.0),)
AT_ONCE: GapCurve = ((0.0, 1e3),)
GARBAGE: dict[str, Callable[[], Learned]] = {
    "contexts explode": lambda: Wrong(1e6, 1e3),
    "contexts explode, gaps end at once": lambda: Wrong(1e6, 1e3, AT_ONCE),
    "without bounds": lambda: Wrong(INF, INF),
    "contexts shrink, calls below none": lambda: Wrong(-1e9, -5.0),
    "nothing grows, nobody returns": lambda: Wrong(0.0, 1.0, NEVER),
    "held ten times over": lambda: Wrong(now=lambda tokens: 10 * tokens),
    "nobody returns": lambda: Wrong(curve=NEVER),
    "gaps reversed": Reversed,
    **{f"dice {seed}": partial(Dice, seed) for seed in range(3)},
}


@cache
def programs(case: str, number: int = PROGRAMS) -> Sequence[Script]:
    return draw(generate(case, {}), number, seed=0)


def play(case: str, policy: Policy, learned_from: str | None = None) -> float:
    """Mean TCT, seconds."""
    workload, kv_tokens, at_once = CASES[case]
    core = Core(policy)
    if learned_from is not None:
        teacher = Core(make_policy("agentsched"))
        run(teacher, programs(learned_from, 60), kv_tokens, 8)
        core.state.gaps, core.state.contexts = teacher.state.gaps, teacher.state.contexts
    return run(core, programs(workload), kv_tokens, at_once)


def run(core: Core, scripts: Sequence[Script], kv_tokens: int, at_once: int) -> float:
    by_name = {script.program: script for script in scripts}
    meter = Meter(lambda name: (by_name[name], True), ["default", *{script.tenant for script in scripts}])
    engine = AnalyticEngine(PROFILES["llama-3.1-8b-h100"], kv_tokens)
    Simulation(core, [engine], scripts, Conditions(concurrency=at_once), log=meter.take).run()
    return fmean(each.last_s - each.first_s for each in meter.programs.values() if each.first_s is not None)


@cache
def baseline(case: str) -> float:
    return play(case, make_policy("fcfs-lru"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_with_garbage_for_forecasts_ours_is_hardly_worse_than_fcfs_lru(garbage: str, case: str) -> None:
    assert play(case, _policy("agentsched", GARBAGE[garbage]())) <= 1.05 * baseline(case)


@pytest.mark.parametrize("case", ["swe-full", "web-few"])
@pytest.mark.parametrize("learned_from", ["text2sql", "continuum-bfcl"])
def test_with_what_other_agents_taught_it_neither(learned_from: str, case: str) -> None:
    assert play(case, make_policy("agentsched"), learned_from) <= 1.05 * baseline(case)
