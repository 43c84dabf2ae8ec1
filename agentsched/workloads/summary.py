"""The one summary of a run: what every command prints as JSON, and every comparison compares.

Definitions, the same for every policy and engine:

* **TCT** of a program: first call's arrival at the gateway to its last call's end. Programs in which
  no call ended well are counted in ``unfinished`` and in nothing else.
* **Post-tool TTFT**: arrival to first token of each call that arrived after an earlier call of its
  program had ended. Waiting for admission is part of it.
* ``recomputed_tokens``: prompt tokens prefilled again although the engine had held them once, summed
  over calls that ended well. ``context_tokens``: the programs' final contexts, summed.
* ``tasks_per_hour``: programs over the time from the first arrival to the last end.
* **Slowdown** of a program: its TCT over its time without contention. Where the caller measured that
  time (the program alone on the same engine), ``slowdown_basis`` is ``alone``. Else it is ``estimated``
  as the TCT less the time spent waiting (at the gateway, or queued in the engine), and less the part
  of each prefill that recomputed tokens made up. That is a lower bound of the slowdown, since what
  a program loses by sharing batches and CPUs counts as its own time.
* ``kv_used`` and ``kv_useful``: mean share of KV that is not free, and that is held for programs with
  calls to come, over the run.

Measured in simulations only, else None:

* ``slowdown_mean``: mean over programs of the slowdown, ``alone`` on an idle engine that holds the
  program's shared prefix.
* ``steady_tasks_per_hour``: ends between the ramp and the last start, over that time. The ramp is over when
  as many programs have ended as live at once, or a quarter of all; what comes after the last start drains.
* ``useful_tokens_per_s``: tokens computed for the first time (prompt tokens neither cached nor recomputed,
  and outputs) of calls that ended well, over the run.
* ``kv_idle``: mean share of KV held by programs none of whose calls is being computed. A shared prefix
  counts for nobody.
* ``alone_mean_s``: mean TCT that the same programs have alone, as for the slowdown; ``slowdown_deciles``: the
  nine deciles of the slowdown.
* ``slo_attainment``, by tenant: of the programs with a deadline, the share that ended within it. One that
  had not ended counts as late if its deadline passed before the run's end. ``slo_met``: of all programs.
* ``useful_by_window``, ``ended_by_window``, open arrivals only: useful tokens a second, and tasks that ended,
  in each ``meter.WINDOW_S`` from the start. Tokens count when their call ends.
* ``fairness_deviation``: with S_i the KV token-seconds held by tenant i while every tenant had programs
  alive, and w_i its weight: the largest |S_i / sum(S) - w_i / sum(w)|. None unless there are several.
* ``imbalance``: the busiest engine's seconds of computing over their mean. ``moves``: admissions to
  another engine than the program's last one.
* ``rejected_calls``: calls turned away for now. ``preempted_calls``: begun, and put back by their engine.
* ``decision_us``: median real time of one ``handle`` of the core, microseconds.
* ``span_s``: virtual time from the first arrival to the end of the run.
* ``oom_kills``, ``tool_delay_s``: of tools on a simulated host with limits; their time beyond their own.
* ``recompute_bound_tokens``: the least that any retention recomputes for these calls at these times;
  ``packing_tasks_per_hour``: the packing bound (``uncontended.Yardstick``), for all engines; and the shares
  that the run reached (``recompute_over_bound`` is None where the bound is 0).

Seconds, tokens and bytes. Percentiles interpolate linearly between samples.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, quantiles

import msgspec

from agentsched.core.log import Entry
from agentsched.graphs.aeg import Aeg
from agentsched.workloads.timeline import Timeline, read_timeline

Host = dict[str, str | int | float]
Conditions = dict[str, str | int | float | bool | None]
"""The options of a simulation, by name."""


class SummaryError(ValueError):
    """The log holds no program that finished, so there is nothing to say about it."""


class TctStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Task completion times, seconds."""

    mean: float
    p50: float
    p95: float
    p99: float


class TtftStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Times to first token of calls that follow a gap, seconds."""

    p50: float
    p90: float
    p99: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``post_tool_ttft_s`` is None if no call followed a gap."""

    policy: str
    programs: int
    tct_s: TctStatistics
    post_tool_ttft_s: TtftStatistics | None
    recomputed_tokens: int
    context_tokens: int
    tasks_per_hour: float
    max_slowdown: float
    slowdown_basis: str
    unfinished: int
    aborted_calls: int
    cached_share: float
    kv_used: float
    kv_useful: float
    tool_calls: int
    tool_cpu_s: float
    tool_peak_memory_bytes: int
    seed: int
    engine: str
    capacity_tokens: int
    round: int
    host: Host
    conditions: Conditions | None = None
    slowdown_mean: float | None = None
    slowdown_deciles: list[float] | None = None
    alone_mean_s: float | None = None
    steady_tasks_per_hour: float | None = None
    useful_tokens_per_s: float | None = None
    kv_idle: float | None = None
    slo_attainment: dict[str, float] | None = None
    slo_met: float | None = None
    fairness_deviation: float | None = None
    imbalance: float | None = None
    moves: int | None = None
    rejected_calls: int | None = None
    preempted_calls: int | None = None
    decision_us: float | None = None
    span_s: float | None = None
    oom_kills: int | None = None
    tool_delay_s: float | None = None
    recompute_bound_tokens: int | None = None
    recompute_over_bound: float | None = None
    packing_tasks_per_hour: float | None = None
    packing_share: float | None = None
    useful_by_window: list[float] | None = None
    ended_by_window: list[int] | None = None


def describe_host() -> Host:
    """What the run ran on, as far as the standard library tells."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    host: Host = {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": model,
        "cores": cores,
        "python": platform.python_version(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        host["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return host


def summarise(
    entries: Iterable[Entry],
    *,
    policy: str,
    seed: int,
    engine: str,
    round: int = 0,
    host: Host | None = None,
    alone_s: Mapping[str, float] | None = None,
) -> Summary:
    """Summarise a log. ``alone_s`` gives each program's TCT without contention, where it was measured.

    Raises ``SummaryError`` if no program finished.
    """
    try:
        timeline = read_timeline(entries)
    except ValueError as error:
        raise SummaryError(str(error)) from None
    return summarise_timeline(
        timeline, policy=policy, seed=seed, engine=engine, round=round, host=host, alone_s=alone_s
    )


def summarise_timeline(
    timeline: Timeline,
    *,
    policy: str,
    seed: int,
    engine: str,
    round: int = 0,
    host: Host | None = None,
    alone_s: Mapping[str, float] | None = None,
) -> Summary:
    """The same from a timeline that was read already."""
    times = completion_times(timeline)
    if not times:
        raise SummaryError("no program finished a call: there is nothing to summarise")
    finished = [timeline.programs[name] for name in times]
    calls = [call for aeg in finished for call in aeg.calls if call.finished_s is not None]
    tools = [tool for aeg in timeline.programs.values() for tool in aeg.tools]
    prompt_tokens = sum(call.prompt_tokens for call in calls)
    used, useful = timeline.mean_occupancy()
    span_s = timeline.end_s
    return Summary(
        policy=policy,
        programs=len(times),
        tct_s=tct_statistics(list(times.values())),
        post_tool_ttft_s=ttft_statistics(post_tool_ttfts(timeline)),
        recomputed_tokens=sum(call.recomputed_tokens for call in calls),
        context_tokens=sum(final_context(aeg) for aeg in finished),
        tasks_per_hour=3600.0 * len(times) / span_s if span_s > 0 else 0.0,
        max_slowdown=max(_slowdowns(timeline, times, alone_s)),
        slowdown_basis="estimated" if alone_s is None else "alone",
        unfinished=len(timeline.programs) - len(times),
        aborted_calls=sum(c.aborted_s is not None for aeg in timeline.programs.values() for c in aeg.calls),
        cached_share=sum(call.cached_tokens for call in calls) / prompt_tokens if prompt_tokens else 0.0,
        kv_used=used,
        kv_useful=useful,
        tool_calls=len(tools),
        tool_cpu_s=sum(tool.cpu_s for tool in tools),
        tool_peak_memory_bytes=max((tool.peak_memory_bytes for tool in tools), default=0),
        seed=seed,
        engine=engine,
        capacity_tokens=timeline.capacity_tokens,
        round=round,
        host=describe_host() if host is None else host,
    )


def completion_times(timeline: Timeline) -> dict[str, float]:
    """TCT of each program that finished a call, seconds."""
    times: dict[str, float] = {}
    for name, aeg in timeline.programs.items():
        ends = [call.finished_s for call in aeg.calls if call.finished_s is not None]
        if ends:
            times[name] = max(ends) - aeg.calls[0].arrived_s
    return times


def post_tool_ttfts(timeline: Timeline) -> list[float]:
    """TTFT of every call that arrived after an earlier call of its program had ended."""
    samples: list[float] = []
    for aeg in timeline.programs.values():
        ends = [call.finished_s for call in aeg.calls if call.finished_s is not None]
        first_end = min(ends, default=float("inf"))
        samples += [
            call.first_token_s - call.arrived_s
            for call in aeg.calls
            if call.first_token_s is not None and call.arrived_s >= first_end
        ]
    return samples


def final_context(aeg: Aeg) -> int:
    """Prompt and output tokens of the call that ended last; 0 if none did."""
    ended = [(c.finished_s, c.prompt_tokens + c.output_tokens) for c in aeg.calls if c.finished_s is not None]
    return max(ended)[1] if ended else 0


def _slowdowns(
    timeline: Timeline, times: Mapping[str, float], alone_s: Mapping[str, float] | None
) -> Iterator[float]:
    lost_s = {row.program: row.seconds("gateway") + row.seconds("queue") for row in timeline.rows}
    for name, tct_s in times.items():
        if alone_s is not None and name not in alone_s:
            raise SummaryError(f"alone_s has no time for program {name!r}")
        own_s = tct_s - lost_s[name] - _recomputing_s(timeline.programs[name])
        if alone_s is not None:
            own_s = alone_s[name]
        yield tct_s / own_s if own_s > 0 else 1.0


def _recomputing_s(aeg: Aeg) -> float:
    """The share of each prefill that recomputed tokens made up, in seconds."""
    total = 0.0
    for call in aeg.calls:
        prefilled = call.prompt_tokens - call.cached_tokens
        if call.started_s is not None and call.first_token_s is not None and prefilled > 0:
            total += (call.first_token_s - call.started_s) * min(1.0, call.recomputed_tokens / prefilled)
    return total


def tct_statistics(samples: list[float]) -> TctStatistics:
    """Of at least one sample."""
    return TctStatistics(
        mean=fmean(samples),
        p50=percentile(samples, 50),
        p95=percentile(samples, 95),
        p99=percentile(samples, 99),
    )


def ttft_statistics(samples: list[float]) -> TtftStatistics | None:
    """None if there are no samples."""
    if not samples:
        return None
    return TtftStatistics(
        p50=percentile(samples, 50), p90=percentile(samples, 90), p99=percentile(samples, 99)
    )


def percentile(samples: Sequence[float], percent: int) -> float:
    """The ``percent``-th percentile, 1-99, of at least one sample, linear between samples."""
    if len(samples) == 1:
        return samples[0]
    return quantiles(samples, n=100, method="inclusive")[percent - 1]
