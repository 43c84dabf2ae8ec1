"""The report of a comparison: one HTML file that needs nothing else, not even a network.

It says first which policy was faster and by how much, in words that also fit when ours was not.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median

import jinja2
import msgspec
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from agentsched.core.log import Entry
from agentsched.graphs.draw import to_svg
from agentsched.workloads import charts
from agentsched.workloads.charts import ReportedRun
from agentsched.workloads.compare import Comparison, compare, figures, policies_of
from agentsched.workloads.summary import Host, Summary, completion_times
from agentsched.workloads.timeline import read_timeline


class ReportError(OSError):
    """The report could not be written; the message names the file and the reason."""


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """One task in one run: whether its hidden tests passed, and what is missing if not."""

    task: str
    policy: str
    round: int
    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One run to report on: its summary (which names policy and round) and its event log."""

    summary: Summary
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class _Chart:
    title: str
    note: str
    html: Markup


@dataclass(frozen=True, slots=True)
class _Drawing:
    program: str
    run: str
    svg: Markup


def write_report(
    path: Path,
    runs: Sequence[Run],
    tasks: Sequence[TaskResult],
    host: Host,
    *,
    baseline: str = "fcfs-lru",
    ours: str = "agentsched",
    title: str = "Agent programs, two schedulers, one machine",
) -> None:
    """Write the report to ``path``, whole or not at all.

    Raises ``ReportError`` if it cannot be written, ``ValueError`` if there is no run, or a log has no call.
    """
    if not runs:
        raise ValueError("runs is empty: there is nothing to report")
    reported = [ReportedRun(run.summary, read_timeline(run.entries)) for run in runs]
    _write(path, _render(reported, tasks, host, baseline=baseline, ours=ours, title=title))


def _render(
    runs: Sequence[ReportedRun],
    tasks: Sequence[TaskResult],
    host: Host,
    *,
    baseline: str,
    ours: str,
    title: str,
) -> str:
    summaries = [run.summary for run in runs]
    comparison = _comparison(summaries, baseline, ours)
    sentence = comparison.sentence() if comparison else f"No round ran both {baseline} and {ours}: no ratio."
    template = resources.files("agentsched.workloads").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        title=title,
        subtitle=_subtitle(summaries),
        plotly_js=Markup(get_plotlyjs()),
        comparison=comparison,
        verdict=_verdict(comparison),
        sentence=sentence,
        policies=policies_of(summaries),
        figures=figures(summaries),
        basis="measured alone" if summaries[0].slowdown_basis == "alone" else "estimated (a lower bound)",
        charts=list(_charts(runs)),
        aeg=_drawing(runs, ours),
        tasks=tasks,
        passed=sum(task.passed for task in tasks),
        setting=list(_setting(summaries, host)),
    )


def _comparison(summaries: Sequence[Summary], baseline: str, ours: str) -> Comparison | None:
    rounds = [{s.round for s in summaries if s.policy == policy} for policy in (baseline, ours)]
    return compare(summaries, baseline=baseline, ours=ours) if rounds[0] & rounds[1] else None


def _verdict(comparison: Comparison | None) -> str:
    if comparison is None or comparison.low <= 1.0 <= comparison.high:
        return "unclear"
    return "better" if comparison.low > 1.0 else "worse"


def _subtitle(summaries: Sequence[Summary]) -> str:
    first = summaries[0]
    rounds = len({summary.round for summary in summaries})
    return (
        f"{first.programs} programs a run, {rounds} round{'s' if rounds > 1 else ''} of "
        f"{' and '.join(policies_of(summaries))}; engine {first.engine} with room for "
        f"{first.capacity_tokens:,} tokens of KV."
    )


def _charts(runs: Sequence[ReportedRun]) -> Iterable[_Chart]:
    one_round = _one_round(runs)
    which = f"Round {one_round[0].summary.round + 1}. "
    most = max(len(run.timeline.rows) for run in one_round)
    cut = f" The first {charts.MAX_ROWS} of {most} programs are shown." if most > charts.MAX_ROWS else ""
    yield _chart(
        "How long programs took, and how long they waited after a tool",
        "Share of programs done, and of calls answered, within a time; further left is better. All rounds.",
        charts.distributions(runs),
    )
    yield _chart(
        "Recomputed tokens",
        "Prompt tokens the engine had held once, evicted, and had to compute again; on each bar their ratio "
        "to the programs' final contexts.",
        charts.recomputation(runs),
    )
    yield _chart(
        "What each program was doing",
        which
        + "Under each program: the share of its context that the device held. Where the green band ends "
        f"before the next call, that call pays for a prefill.{cut}",
        charts.programs_chart(one_round),
    )
    yield _chart(
        "KV occupancy",
        which + "Solid: held for programs with calls to come. Dotted: everything that is not free.",
        charts.occupancy(one_round),
    )
    if any(aeg.tools for run in runs for aeg in run.timeline.programs.values()):
        yield _chart(
            "CPU and memory by tool call",
            "As the sandboxes measured it, a point a tool call; the commands that used most CPU.",
            charts.tools_chart(runs),
        )


def _chart(title: str, note: str, figure: go.Figure) -> _Chart:
    markup = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displaylogo": False, "responsive": True, "displayModeBar": False},
    )
    return _Chart(title, note, Markup(markup))


def _one_round(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """The first round that has a run of every policy, else the first run of each."""
    by_policy = {
        name: {run.summary.round: run for run in runs if run.policy == name} for name in charts.policies(runs)
    }
    shared = set.intersection(*(set(own) for own in by_policy.values()))
    return [own[min(shared) if shared else min(own)] for own in by_policy.values()]


def _drawing(runs: Sequence[ReportedRun], ours: str) -> _Drawing | None:
    """The program whose TCT is nearest to the median, in a run of ours if there is one."""
    chosen = next((run for run in runs if run.policy == ours), runs[0])
    times = completion_times(chosen.timeline)
    if not times:
        return None
    middle = median(times.values())
    program = min(times, key=lambda name: (abs(times[name] - middle), name))
    run = f"{chosen.policy}, round {chosen.summary.round + 1}"
    return _Drawing(program, run, Markup(to_svg(chosen.timeline.programs[program])))


def _setting(summaries: Sequence[Summary], host: Host) -> Iterable[tuple[str, str]]:
    first = summaries[0]
    yield "engine", first.engine
    yield "KV capacity", f"{first.capacity_tokens:,} tokens"
    yield "seeds", ", ".join(str(seed) for seed in sorted({summary.seed for summary in summaries}))
    for name, value in host.items():
        yield name.replace("_", " "), str(value)


def _write(path: Path, text: str) -> None:
    draft: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="replace", dir=path.parent, prefix=".report-", delete=False
        ) as file:
            draft = file.name
            file.write(text)
        Path(draft).chmod(0o644)
        os.replace(draft, path)
    except OSError as error:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise ReportError(f"cannot write the report to {path}: {reason}") from None
