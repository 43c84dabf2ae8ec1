"""The figures of simulated runs, named for people: for tables, ratios and plots alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentsched.workloads.summary import Summary


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure. ``better``: "less", "more", or "" where neither is better in itself.

    ``floor``: in ratios, less than this counts as this: a policy that recomputes nothing is not infinitely
    better than one that recomputes a thousandth.
    """

    name: str
    of: Callable[[Summary], float | None]
    form: str
    better: str = "less"
    floor: float = 0.0


def _ttft(name: str) -> Callable[[Summary], float | None]:
    return lambda s: getattr(s.post_tool_ttft_s, name) if s.post_tool_ttft_s else None


FIGURES = (
    Figure("TCT mean, s", lambda s: s.tct_s.mean, "{:,.1f}"),
    Figure("TCT P50, s", lambda s: s.tct_s.p50, "{:,.1f}"),
    Figure("TCT P95, s", lambda s: s.tct_s.p95, "{:,.1f}"),
    Figure("TCT P99, s", lambda s: s.tct_s.p99, "{:,.1f}"),
    Figure("slowdown mean", lambda s: s.slowdown_mean, "{:,.2f}"),
    Figure("slowdown max", lambda s: s.max_slowdown, "{:,.2f}"),
    Figure(
        "mean TCT over alone",
        lambda s: s.tct_s.mean / s.alone_mean_s if s.alone_mean_s else None,
        "{:,.2f}",
    ),
    Figure("post-tool TTFT P50, s", _ttft("p50"), "{:,.2f}", floor=0.05),
    Figure("post-tool TTFT P90, s", _ttft("p90"), "{:,.2f}", floor=0.05),
    Figure("post-tool TTFT P99, s", _ttft("p99"), "{:,.2f}", floor=0.05),
    Figure("tasks an hour", lambda s: s.tasks_per_hour, "{:,.1f}", "more"),
    Figure("tasks an hour, steady", lambda s: s.steady_tasks_per_hour, "{:,.1f}", "more"),
    Figure("of the packing bound", lambda s: s.packing_share, "{:.2f}", "more"),
    Figure("useful tokens a second", lambda s: s.useful_tokens_per_s, "{:,.0f}", "more"),
    Figure(
        "recomputed over context",
        lambda s: s.recomputed_tokens / s.context_tokens if s.context_tokens else None,
        "{:.3f}",
        floor=0.01,
    ),
    Figure("recomputed over the bound", lambda s: s.recompute_over_bound, "{:.2f}"),
    Figure("prompt tokens from cache", lambda s: s.cached_share, "{:.1%}", "more"),
    Figure("KV used", lambda s: s.kv_used, "{:.1%}", ""),
    Figure("KV of live programs", lambda s: s.kv_useful, "{:.1%}", ""),
    Figure("KV idle", lambda s: s.kv_idle, "{:.1%}", ""),
    Figure("SLO attainment", lambda s: s.slo_met, "{:.1%}", "more", floor=0.01),
    Figure(
        "SLO attainment, least of tenants",
        lambda s: min(s.slo_attainment.values()) if s.slo_attainment else None,
        "{:.1%}",
        "more",
        floor=0.01,
    ),
    Figure("fairness deviation", lambda s: s.fairness_deviation, "{:.3f}", floor=0.01),
    Figure("imbalance of engines", lambda s: s.imbalance, "{:.2f}"),
    Figure("moves between engines", lambda s: s.moves, "{:,.0f}", ""),
    Figure("rejected calls", lambda s: s.rejected_calls, "{:,.0f}", ""),
    Figure("preempted calls", lambda s: s.preempted_calls, "{:,.0f}", ""),
    Figure("tools killed for memory", lambda s: s.oom_kills, "{:,.0f}"),
    Figure("delay of tools, s", lambda s: s.tool_delay_s, "{:,.0f}"),
    Figure("unfinished programs", lambda s: s.unfinished, "{:,.0f}", ""),
    Figure("decision, us", lambda s: s.decision_us, "{:.1f}"),
)


def figures(runs: Sequence[Summary]) -> list[tuple[str, list[str]]]:
    """(name, one cell a run) of all that any run has; an empty cell where it has not."""
    table = []
    for figure in FIGURES:
        values = [figure.of(run) for run in runs]
        if any(value is not None for value in values):
            table.append((figure.name, ["" if v is None else figure.form.format(v) for v in values]))
    return table
