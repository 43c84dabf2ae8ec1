"""A trace of agents replayed on an engine that really computes.

The simulator's loop drives the engine step by step: a step takes what it takes on the wall, its KV's books
included, and that much time passes for the programs; gaps of tools pass at no cost. So a run costs the
engine's busy time alone. What is missing of a daemon's time: sockets, tokenizing, and the core's decisions.

Outputs are recorded ones, at full computing cost. KV is sized for the pressure: the mean of the live
programs' summed contexts where nothing waits for room, over KV (``uncontended.py``). Every policy replays
the same programs in the same order, in turns; the next repeat has them in another order. Beside each run the
analytic simulator tells what it takes by costs that were measured before, on other steps.

Imports no more than an engine does: it is for machines with a GPU and little else.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from agentsched.core import Core, make_policy
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import GenerateRequest, Sampling, StepEngine
from agentsched.engines.cost import CostProfile
from agentsched.engines.execution import Executor
from agentsched.workloads.bench._costs import ROWS, Costs, calibrate, calibration_tokens
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.measures import RunFacts, summarise_run
from agentsched.workloads.meter import Meter
from agentsched.workloads.oracle import ScriptOracle
from agentsched.workloads.scaled import scaled
from agentsched.workloads.selection import family, roots
from agentsched.workloads.simulator import SimulatedEngine, Simulation
from agentsched.workloads.stepwise import StepwiseEngine, Timed
from agentsched.workloads.summary import Summary
from agentsched.workloads.traces import load
from agentsched.workloads.uncontended import Serving, alone_s, occupancy
from agentsched.workloads.workload import Workload, every_program_once, peak_tokens

Say = Callable[[str], None]
MEASURES: dict[str, Callable[[Summary], float]] = {
    "tct_mean_s": lambda run: run.tct_s.mean,
    "tct_p99_s": lambda run: run.tct_s.p99,
    "recomputed_over_context": lambda run: run.recomputed_tokens / run.context_tokens,
    "tasks_per_hour": lambda run: run.tasks_per_hour,
}
BLOCK_TOKENS = 16


class ReplayError(ValueError):
    """What is asked for makes no replay, or a call of it failed; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is replayed. ``token_divisor`` and ``gap_divisor`` make the trace's programs smaller; no
    repeat is begun that would probably not end within ``seconds`` of all."""

    trace: str = "gen:continuum-swe"
    programs: int = 24
    concurrency: int = 10
    token_divisor: float = 50.0
    gap_divisor: float = 20.0
    pressure: float = 2.0
    policies: tuple[str, ...] = ("fcfs-lru", "agentsched")
    repeats: int = 3
    chunk_tokens: int = 512
    max_running: int = 64
    seconds: float = float("inf")
    measured_rows: tuple[int, ...] = ROWS
    measured_rounds: int = 2

    def __post_init__(self) -> None:
        for name in self.policies:
            if name != "clairvoyant":
                make_policy(name)
        if len(set(self.policies)) < len(self.policies) or not self.policies:
            raise ReplayError("name each policy once, and one at least")
        if self.concurrency > self.programs:
            raise ReplayError(f"{self.programs} programs cannot be {self.concurrency} at once")


# The programs and their room


def workload_of(plan: Plan, max_context_tokens: int) -> Workload:
    """The first programs of the trace, made smaller, that a context has room for. Raises ``ReplayError``
    and ``TraceError``."""
    made = scaled(load(plan.trace), tokens=plan.token_divisor, gaps=plan.gap_divisor)
    by_name = {script.program: script for script in made}
    families = [family(root, by_name) for root in roots(made)]
    fits = [each for each in families if max(map(peak_tokens, each)) <= max_context_tokens]
    chosen = fits[: plan.programs]
    if len(chosen) < plan.programs:
        raise ReplayError(
            f"{plan.trace}: {len(chosen)} of {len(families)} programs have contexts of at most "
            f"{max_context_tokens:,} tokens once divided by {plan.token_divisor:g}; "
            f"{plan.programs} are wanted: divide by more, or ask for fewer"
        )
    left_out = Counter({f"context over {max_context_tokens:,} tokens": len(families) - len(fits)})
    return Workload(tuple(script for each in chosen for script in each), +left_out)


def deepest(workload: Workload) -> int:
    """The most tokens that a context comes to have."""
    return max(map(peak_tokens, workload.scripts))


def kv_tokens(plan: Plan, workload: Workload, profile: CostProfile) -> int:
    """KV in which the plan's programs make its pressure, in whole blocks. Raises ``ReplayError``."""
    held = occupancy(workload, _serving(plan, profile), plan.concurrency).tokens
    tokens = int(held / plan.pressure) // BLOCK_TOKENS * BLOCK_TOKENS
    most = deepest(workload) + BLOCK_TOKENS
    if tokens < most:
        raise ReplayError(
            f"at pressure {plan.pressure:g} {plan.concurrency} programs leave {tokens:,} tokens of KV, and "
            f"the largest context has {most:,}: raise the concurrency"
        )
    return tokens


def _serving(plan: Plan, profile: CostProfile) -> Serving:
    return Serving(profile, plan.chunk_tokens, plan.max_running)


# Runs


def replay_on(plan: Plan, max_context_tokens: int, executor: Callable[[int], Executor], say: Say) -> Replay:
    """The whole: the programs, what steps cost, the KV, and the runs. ``executor`` gives one with so many
    tokens of KV; the contexts that it serves have at most ``max_context_tokens``. Raises ``ReplayError``
    and ``TraceError``."""
    workload = workload_of(plan, max_context_tokens)
    context = deepest(workload)
    chunk = plan.chunk_tokens
    costs = calibrate(
        executor(calibration_tokens(context, chunk)),
        context,
        chunk,
        say,
        rows=plan.measured_rows,
        rounds=plan.measured_rounds,
    )
    tokens = kv_tokens(plan, workload, costs.profile)
    say(f"{len(workload.roots())} programs of up to {context:,} tokens, {tokens:,} tokens of KV")
    serving = executor(tokens)

    def engine() -> BatchingEngine:
        return BatchingEngine(
            serving, "embedded", name="e0", chunk_tokens=plan.chunk_tokens, max_running=plan.max_running
        )

    warm_up(engine(), plan.concurrency)
    return replay(plan, workload, costs, tokens, engine, say)


def warm_up(engine: StepEngine, most: int) -> None:
    """Have every number of rows decode once, so that no run pays for what is set up at its first use."""
    for rows in range(1, most + 1):
        for row in range(rows):
            request = GenerateRequest(
                call=f"warm-up {rows} {row}",
                program="warm-up",
                prompt=[1 + row, *range(1, 16)],
                sampling=Sampling(max_output_tokens=3),
            )
            engine.submit(request, 0.0)
        while engine.has_work:
            engine.step(0.0)


@dataclass(slots=True)
class Replay:
    """Summaries by policy, one a repeat: of the engine, and of the simulator in its place."""

    plan: Plan
    kv_tokens: int
    costs: Costs
    left_out: dict[str, int]
    measured: dict[str, list[Summary]] = field(default_factory=dict)
    predicted: dict[str, list[Summary]] = field(default_factory=dict)
    busy_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)

    def ratios(self, policy: str, measure: str) -> list[float]:
        """That of the first policy over that of ``policy``, repeat by repeat."""
        value = MEASURES[measure]
        pairs = zip(self.measured[self.plan.policies[0]], self.measured[policy], strict=True)
        return [value(base) / value(other) for base, other in pairs]

    def predictions(self, policy: str) -> list[float]:
        """Mean TCT predicted over measured, repeat by repeat."""
        pairs = zip(self.predicted[policy], self.measured[policy], strict=True)
        return [told.tct_s.mean / real.tct_s.mean for told, real in pairs]

    def figures(self) -> dict[str, Any]:
        """What goes into a file: each figure as a list, one a repeat."""
        first, *others = self.plan.policies
        return {
            "plan": asdict(self.plan) | {"seconds": min(self.plan.seconds, 1e9)},
            "kv_tokens": self.kv_tokens,
            "left_out": self.left_out,
            "profile": asdict(self.costs.profile) | {"mean_error": self.costs.mean_error},
            "policies": {
                policy: {name: [value(run) for run in runs] for name, value in MEASURES.items()}
                | {
                    "busy_s": self.busy_s[policy],
                    "cpu_s": self.cpu_s[policy],
                    "predicted_tct_mean_s": [run.tct_s.mean for run in self.predicted[policy]],
                    "predicted_over_measured": self.predictions(policy),
                }
                for policy, runs in self.measured.items()
            },
            "ratios": {
                f"{first} over {policy}": {
                    name: self.ratios(policy, name) for name in ("tct_mean_s", "tct_p99_s")
                }
                for policy in others
            },
        }

    def goals(self) -> dict[str, dict[str, float | bool]]:
        """No policy's programs take longer than those of the first, in the mean and in the tail."""
        found: dict[str, dict[str, float | bool]] = {}
        for policy in self.plan.policies[1:]:
            for name, title in (("tct_mean_s", "mean TCT"), ("tct_p99_s", "P99 TCT")):
                value = statistics.median(self.ratios(policy, name))
                goal = f"{title}, {self.plan.policies[0]} over {policy}"
                found[goal] = {"value": round(value, 3), "want": 1.0, "met": value >= 1.0}
        return found

    def lines(self) -> list[str]:
        """How far off the simulator was, for people."""
        return [
            f"simulator's mean TCT over the measured one, {policy}: {spread(self.predictions(policy))}"
            for policy in self.measured
        ]


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest, for people."""
    middle, low, high = (
        f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def replay(
    plan: Plan,
    workload: Workload,
    costs: Costs,
    tokens: int,
    make_engine: Callable[[], StepEngine],
    say: Say,
) -> Replay:
    """Play the workload on the engine, and on the simulator. ``make_engine`` gives an empty one of
    ``tokens`` of KV for each run. Raises ``ReplayError`` if a call fails."""
    made = Replay(plan, tokens, costs, dict(workload.left_out))
    began_s, longest_s = time.perf_counter(), 0.0
    for repeat in range(plan.repeats):
        turn_s = time.perf_counter()
        if repeat and turn_s - began_s + longest_s > plan.seconds:
            say(f"{plan.seconds:g} s are nearly over: no more repeats than {repeat}")
            break
        for policy in plan.policies if repeat % 2 == 0 else reversed(plan.policies):
            timed = Timed(make_engine())
            told = f"repeat {repeat + 1}, {policy}"
            run = _play(
                plan, workload, costs, policy, repeat, StepwiseEngine(timed), partial(say_ends, say, told)
            )
            simulated = _serving(plan, costs.profile).engine(tokens)
            guess = _play(plan, workload, costs, policy, repeat, simulated, None)
            made.measured.setdefault(policy, []).append(run)
            made.predicted.setdefault(policy, []).append(guess)
            made.busy_s.setdefault(policy, []).append(timed.busy_s)
            made.cpu_s.setdefault(policy, []).append(timed.cpu_s)
            say(
                f"{told}: mean TCT {run.tct_s.mean:.2f} s, predicted {guess.tct_s.mean:.2f} s; "
                f"the engine computed for {timed.busy_s:.1f} s, with {timed.cpu_s:.1f} s of processors"
            )
        longest_s = max(longest_s, time.perf_counter() - turn_s)
    return made


def say_ends(say: Say, told: str, now: float, ended: int) -> None:
    if ended % 8 == 0:
        say(f"{told}: {ended} programs have ended after {now:.1f} s")


def _play(
    plan: Plan,
    workload: Workload,
    costs: Costs,
    policy: str,
    repeat: int,
    engine: SimulatedEngine,
    progress: Callable[[float, int], None] | None,
) -> Summary:
    cast, chosen = every_program_once(workload, repeat)
    meter = Meter(cast.script, workload.tenants())
    run = Simulation(
        Core(make_policy(policy, ScriptOracle(lambda program: cast.script(program)[0]))),
        [engine],
        chosen[: plan.concurrency],
        Conditions(concurrency=plan.concurrency, seed=repeat),
        agents=cast.agents,
        then=chosen[plan.concurrency :],
        log=meter.take,
        progress=progress,
    )
    gc.collect()
    run.run()
    times = alone_s(workload, _serving(plan, costs.profile))
    facts = RunFacts(
        policy=policy,
        engine=engine.name,
        seed=repeat,
        concurrency=plan.concurrency,
        alone_s=lambda program: times[program],
        decided_s=run.decided_s,
        conditions={},
    )
    summary = summarise_run(meter, facts)
    if summary.unfinished or summary.aborted_calls:
        raise ReplayError(
            f"{policy}: {summary.aborted_calls} calls failed and {summary.unfinished} programs did not end; "
            "the engine's log says why"
        )
    return summary
