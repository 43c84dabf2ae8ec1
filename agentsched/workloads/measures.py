"""From what a meter counted in a simulated run to its summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles

import msgspec

from agentsched.workloads.arrivals import HOUR_S
from agentsched.workloads.meter import WINDOW_S, Meter, Program, Tenant, steady_span
from agentsched.workloads.summary import (
    Conditions,
    Summary,
    SummaryError,
    describe_host,
    tct_statistics,
    ttft_statistics,
)
from agentsched.workloads.tool_host import HostUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the log of a run does not tell. ``alone_s`` gives a root program's TCT without contention."""

    policy: str
    engine: str
    seed: int
    concurrency: int | None
    alone_s: Callable[[str], float]
    decided_s: Sequence[float]
    conditions: Conditions
    tool_host: HostUsage | None = None
    recompute_bound_tokens: int | None = None
    packing_tasks_per_hour: float | None = None


def summarise_run(meter: Meter, facts: RunFacts) -> Summary:
    """The summary of a simulated run. Raises ``SummaryError`` if no program ended well."""
    tasks = {name: program for name, program in meter.programs.items() if program.root}
    times = {name: _tct_s(program) for name, program in tasks.items() if program.closed and program.finished}
    if not times:
        raise SummaryError(
            f"{facts.policy}: none of {len(tasks)} programs ended well within {meter.now:,.0f} s, so there "
            "is nothing to summarise; let the run go on for longer"
        )
    alone_s = [max(1e-9, facts.alone_s(name)) for name in times]
    slowdowns = [tct_s / alone for tct_s, alone in zip(times.values(), alone_s, strict=True)]
    origin_s = min(program.first_s for program in tasks.values() if program.first_s is not None)
    last_s = max(program.last_s for program in tasks.values())
    span_s = (last_s if all(program.closed for program in tasks.values()) else meter.now) - origin_s
    per_hour, steady = _tasks_per_hour(tasks.values(), times, span_s, facts.concurrency)
    counts, capacity = meter.counts, meter.capacity_tokens()
    summary = Summary(
        policy=facts.policy,
        programs=len(times),
        tct_s=tct_statistics(list(times.values())),
        post_tool_ttft_s=ttft_statistics(meter.ttft_s),
        recomputed_tokens=counts["recomputed"],
        context_tokens=sum(program.final_context for program in meter.programs.values()),
        tasks_per_hour=per_hour,
        max_slowdown=max(slowdowns),
        slowdown_basis="alone",
        unfinished=len(tasks) - len(times),
        aborted_calls=counts["aborted"],
        cached_share=counts["cached"] / counts["prompt"],
        kv_used=meter.used_area / (capacity * meter.now),
        kv_useful=meter.useful_area / (capacity * meter.now),
        tool_calls=counts["tools"],
        tool_cpu_s=meter.tool_cpu_s,
        tool_peak_memory_bytes=meter.tool_memory_bytes,
        seed=facts.seed,
        engine=facts.engine,
        capacity_tokens=capacity,
        round=0,
        host=describe_host(),
    )
    summary = _with_simulated(summary, meter, facts, slowdowns, span_s, steady)
    return msgspec.structs.replace(summary, alone_mean_s=fmean(alone_s))


def _with_simulated(
    summary: Summary,
    meter: Meter,
    facts: RunFacts,
    slowdowns: Sequence[float],
    span_s: float,
    steady: float | None,
) -> Summary:
    """With the measures that only simulations have."""
    counts, capacity = meter.counts, meter.capacity_tokens()
    useful = counts["prompt"] - counts["cached"] - counts["recomputed"] + counts["output"]
    bound, packing = facts.recompute_bound_tokens, facts.packing_tasks_per_hour
    tasks = [program for program in meter.programs.values() if program.root]
    met = _met(tasks, meter.now)
    windows = range(int(meter.now / WINDOW_S) + 1 if facts.concurrency is None else 0)
    return msgspec.structs.replace(
        summary,
        conditions=facts.conditions,
        slowdown_mean=fmean(slowdowns),
        slowdown_deciles=quantiles(slowdowns, n=10, method="inclusive") if len(slowdowns) > 1 else None,
        steady_tasks_per_hour=steady,
        useful_tokens_per_s=useful / span_s,
        kv_idle=meter.idle_area / (capacity * meter.now),
        slo_attainment={tenant: fmean(each) for tenant, each in sorted(met.items())} or None,
        slo_met=fmean(each for of_tenant in met.values() for each in of_tenant) if met else None,
        fairness_deviation=_deviation(meter.tenants.values()),
        imbalance=_imbalance([engine.busy_s for engine in meter.engines.values()]),
        moves=counts["moves"],
        rejected_calls=counts["rejected"],
        preempted_calls=counts["preempted"],
        decision_us=1e6 * median(facts.decided_s),
        span_s=span_s,
        oom_kills=facts.tool_host.oom_kills if facts.tool_host else None,
        tool_delay_s=facts.tool_host.delay_s if facts.tool_host else None,
        recompute_bound_tokens=bound,
        recompute_over_bound=counts["recomputed"] / bound if bound else None,
        packing_tasks_per_hour=packing,
        packing_share=(steady or summary.tasks_per_hour) / packing if packing else None,
        useful_by_window=[meter.useful_tokens[window] / WINDOW_S for window in windows] or None,
        ended_by_window=[meter.ended_tasks[window] for window in windows] or None,
    )


def _tct_s(program: Program) -> float:
    assert program.first_s is not None, "a program that ended well has made a call"
    return program.last_s - program.first_s


def _tasks_per_hour(
    tasks: Iterable[Program], times: dict[str, float], span_s: float, concurrency: int | None
) -> tuple[float, float | None]:
    """Of the whole run, and of its steady part."""
    starts = [program.first_s for program in tasks if program.first_s is not None]
    ends = [program.last_s for program in tasks if program.closed and program.finished]
    span = steady_span(starts, ends, concurrency)
    per_hour = HOUR_S * len(times) / span_s
    if span is None:
        return per_hour, None
    begin_s, end_s = span
    within = sum(begin_s < end <= end_s for end in ends)
    return per_hour, HOUR_S * within / (end_s - begin_s)


def _met(tasks: Iterable[Program], now: float) -> dict[str, list[bool]]:
    """By tenant, for each program with a deadline that is over or that it met: whether it met it."""
    met: dict[str, list[bool]] = {}
    for program in tasks:
        deadline_s = program.script.deadline_s
        if deadline_s is None or program.first_s is None:
            continue
        if program.closed and program.finished:
            met.setdefault(program.script.tenant, []).append(_tct_s(program) <= deadline_s)
        elif program.closed or program.first_s + deadline_s < now:
            met.setdefault(program.script.tenant, []).append(False)
    return met


def _deviation(tenants: Iterable[Tenant]) -> float | None:
    """With equal weights, as no script says otherwise."""
    held = [tenant.token_seconds for tenant in tenants]
    total = sum(held)
    if len(held) < 2 or not total:
        return None
    return max(abs(each / total - 1 / len(held)) for each in held)


def _imbalance(busy_s: Sequence[float]) -> float | None:
    mean_s = fmean(busy_s)
    return max(busy_s) / mean_s if mean_s else None
