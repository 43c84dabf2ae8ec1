"""Two policies side by side: the ratio of their mean TCTs, round by round.

Rounds are pairs: both policies run the same programs with the same seed, so a ratio is taken within
each round and then over rounds (geometric mean, with the least and the greatest as the spread).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean

import msgspec
from rich.table import Table

from agentsched.workloads.summary import Summary


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Mean TCT of ``baseline`` over that of ``ours``: above 1, ours is faster. One ratio a round."""

    baseline: str
    ours: str
    rounds: list[int]
    ratios: list[float]
    ratio: float
    low: float
    high: float

    def sentence(self) -> str:
        """The outcome in plain words, whichever way it went."""
        spread = f"{self.low:.2f} to {self.high:.2f} over {len(self.ratios)} rounds"
        if len(self.ratios) == 1:
            spread = "one round only, so nothing is known of the spread"
        if self.low > 1.0 and round(self.ratio, 2) > 1.0:
            times = f"{self.ratio:.2f} times as fast"
            return f"Programs finished {times} with {self.ours} as with {self.baseline} ({spread})."
        if self.high < 1.0:
            return (
                f"{self.ours} was slower than {self.baseline}: its programs took "
                f"{1 / self.ratio:.2f} times as long (ratio {spread})."
            )
        return (
            f"{self.ours} was not better than {self.baseline} in every round "
            f"(ratio {self.ratio:.2f}; {spread}): this run shows no clear difference."
        )


def compare(runs: Sequence[Summary], *, baseline: str, ours: str) -> Comparison:
    """Pair the two policies by round. Raises ValueError if no round has both, or times are 0."""
    by_policy = {
        policy: {run.round: run for run in runs if run.policy == policy} for policy in (baseline, ours)
    }
    rounds = sorted(by_policy[baseline].keys() & by_policy[ours].keys())
    if not rounds:
        raise ValueError(f"no round has a run of both {baseline!r} and {ours!r}")
    if not all(by_policy[p][r].tct_s.mean > 0 for p in by_policy for r in rounds):
        raise ValueError("a run has a mean TCT of 0 s: there is no ratio to it")
    ratios = [by_policy[baseline][r].tct_s.mean / by_policy[ours][r].tct_s.mean for r in rounds]
    return Comparison(
        baseline=baseline,
        ours=ours,
        rounds=rounds,
        ratios=ratios,
        ratio=geometric_mean(ratios),
        low=min(ratios),
        high=max(ratios),
    )


Cell = tuple[str, Callable[[Summary], float], str]
ROWS: tuple[Cell, ...] = (
    ("TCT mean, s", lambda s: s.tct_s.mean, "{:,.1f}"),
    ("TCT p50, s", lambda s: s.tct_s.p50, "{:,.1f}"),
    ("TCT p95, s", lambda s: s.tct_s.p95, "{:,.1f}"),
    ("TCT p99, s", lambda s: s.tct_s.p99, "{:,.1f}"),
    ("Post-tool TTFT p50, s", lambda s: s.post_tool_ttft_s.p50 if s.post_tool_ttft_s else 0.0, "{:,.2f}"),
    ("Post-tool TTFT p90, s", lambda s: s.post_tool_ttft_s.p90 if s.post_tool_ttft_s else 0.0, "{:,.2f}"),
    ("Post-tool TTFT p99, s", lambda s: s.post_tool_ttft_s.p99 if s.post_tool_ttft_s else 0.0, "{:,.2f}"),
    (
        "Recomputed / context",
        lambda s: s.recomputed_tokens / s.context_tokens if s.context_tokens else 0.0,
        "{:.2f}",
    ),
    ("Recomputed tokens", lambda s: s.recomputed_tokens, "{:,.0f}"),
    ("Prompt tokens from cache", lambda s: s.cached_share, "{:.0%}"),
    ("KV used, mean", lambda s: s.kv_used, "{:.0%}"),
    ("KV held for live programs, mean", lambda s: s.kv_useful, "{:.0%}"),
    ("Tasks an hour", lambda s: s.tasks_per_hour, "{:,.0f}"),
    ("Max slowdown", lambda s: s.max_slowdown, "{:.2f}"),
    ("Tool CPU, s", lambda s: s.tool_cpu_s, "{:,.1f}"),
    ("Tool peak memory, MB", lambda s: s.tool_peak_memory_bytes / 1e6, "{:,.0f}"),
)


def policies_of(runs: Sequence[Summary]) -> list[str]:
    """In order of first appearance."""
    return list(dict.fromkeys(run.policy for run in runs))


def figures(runs: Sequence[Summary]) -> list[tuple[str, list[str]]]:
    """(name, one cell a policy): the mean over rounds, with the span where rounds differ."""
    table: list[tuple[str, list[str]]] = []
    for name, value, form in ROWS:
        cells = []
        for policy in policies_of(runs):
            values = [value(run) for run in runs if run.policy == policy]
            mean, low, high = (form.format(x) for x in (fmean(values), min(values), max(values)))
            cells.append(mean if low == high else f"{mean} ({low} to {high})")
        table.append((name, cells))
    return table


def comparison_table(runs: Sequence[Summary]) -> Table:
    """All measures of all policies, for a terminal."""
    table = Table(title="Means over rounds (least to greatest)")
    table.add_column("measure", no_wrap=True)
    for policy in policies_of(runs):
        table.add_column(policy, justify="right")
    for name, cells in figures(runs):
        table.add_row(name, *cells)
    return table
