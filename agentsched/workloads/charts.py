"""The report's charts: plotly figures from timelines and summaries, nothing computed twice.

A chart takes runs and returns a figure. Names that programs chose are escaped for plotly's labels,
which understand a subset of HTML.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from agentsched.graphs.aeg import ToolNode
from agentsched.workloads.summary import Summary, completion_times, post_tool_ttfts
from agentsched.workloads.timeline import Row, Timeline

POLICY_COLOURS = ("#d9722e", "#2f6fc4", "#2e9467", "#8a5bc2", "#8c6d46")
"""By order of appearance: distinct in lightness too, so they survive a grey print."""

KINDS = (
    ("gateway", "waiting for admission", "#b9a3e3"),
    ("queue", "waiting in the engine", "#d1495b"),
    ("prefill", "computing: prefill", "#1f5fa8"),
    ("decode", "computing: decode", "#7db8ef"),
    ("tool", "tool runs", "#e3a93b"),
    ("agent", "agent's own time", "#d3d8de"),
)
KV_COLOUR = "#14897b"
MAX_ROWS = 40
"""Programs drawn for each policy; more would be lines too thin to read."""
MAX_COMMANDS = 10
ROW_PX = 34


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """A run as the charts see it."""

    summary: Summary
    timeline: Timeline

    @property
    def policy(self) -> str:
        return self.summary.policy


def label(text: str, most: int = 28) -> str:
    """A name from outside as a label: short, printable, and never markup."""
    shown = text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return html.escape("".join(char if char.isprintable() else "?" for char in shown))


def policies(runs: Iterable[ReportedRun]) -> dict[str, str]:
    """Policy -> colour, in order of first appearance."""
    names = dict.fromkeys(run.policy for run in runs)
    return {name: POLICY_COLOURS[i % len(POLICY_COLOURS)] for i, name in enumerate(names)}


def distributions(runs: Sequence[ReportedRun]) -> go.Figure:
    """Share of programs done, and of calls answered, within a time; all rounds together."""
    figure = make_subplots(
        cols=2,
        subplot_titles=("Task completion time", "Post-tool time to first token"),
        horizontal_spacing=0.09,
    )
    for policy, colour in policies(runs).items():
        own = [run.timeline for run in runs if run.policy == policy]
        samples = (
            [seconds for timeline in own for seconds in completion_times(timeline).values()],
            [seconds for timeline in own for seconds in post_tool_ttfts(timeline)],
        )
        for column, values in enumerate(samples, 1):
            ordered = sorted(values)
            figure.add_scatter(
                x=[0.0, *ordered],
                y=[100.0 * i / max(1, len(ordered)) for i in range(len(ordered) + 1)],
                name=label(policy),
                legendgroup=policy,
                showlegend=column == 1,
                mode="lines",
                line={"color": colour, "width": 2.5, "shape": "hv"},
                hovertemplate="%{y:.0f} % within %{x:.2f} s",
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="seconds", rangemode="tozero")
    figure.update_yaxes(title_text="% of programs", range=[0, 103], col=1)
    figure.update_yaxes(title_text="% of calls after a gap", range=[0, 103], col=2)
    return _dressed(figure, 360)


def recomputation(runs: Sequence[ReportedRun]) -> go.Figure:
    """Recomputed tokens, a bar for each policy and round."""
    figure = go.Figure()
    for policy, colour in policies(runs).items():
        own = [run.summary for run in runs if run.policy == policy]
        figure.add_bar(
            x=[f"round {summary.round + 1}" for summary in own],
            y=[summary.recomputed_tokens for summary in own],
            text=[f"{s.recomputed_tokens / max(1, s.context_tokens):.2f} x context" for s in own],
            textposition="auto",
            name=label(policy),
            marker_color=colour,
            hovertemplate="%{y:,} tokens, %{text}",
        )
    figure.update_layout(barmode="group", bargap=0.35)
    figure.update_yaxes(title_text="tokens computed again", rangemode="tozero")
    return _dressed(figure, 300)


def programs_chart(runs: Sequence[ReportedRun]) -> go.Figure:
    """What each program did when, one panel a run on one time axis, and how much of its KV was held."""
    shown = [sorted(run.timeline.rows, key=_start)[:MAX_ROWS] for run in runs]
    heights = [ROW_PX * max(2, len(rows)) for rows in shown]
    figure = make_subplots(
        rows=len(runs),
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=46 / (sum(heights) + 46 * len(runs)),
        subplot_titles=[f"{label(run.policy)}, round {run.summary.round + 1}" for run in runs],
    )
    named: set[str] = set()
    for panel, rows in enumerate(shown, 1):
        for rank, (kind, name, colour) in enumerate(KINDS):
            if any(segment.kind == kind for row in rows for segment in row.segments):
                _segments(figure, panel, rows, kind, name, colour)
                figure.data[-1].update(showlegend=kind not in named, legendrank=rank)
                named.add(kind)
        xs, ys = _kv_outlines(rows)
        figure.add_scatter(
            x=xs,
            y=ys,
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor=KV_COLOUR,
            name="share of its KV on the device",
            legendgroup="kv",
            showlegend=panel == 1,
            hoverinfo="skip",
            row=panel,
            col=1,
        )
        figure.update_yaxes(
            range=[len(rows), 0],
            tickvals=[index + 0.45 for index in range(len(rows))],
            ticktext=[label(row.program, 22) for row in rows],
            showgrid=False,
            zeroline=False,
            row=panel,
            col=1,
        )
    figure.update_layout(barmode="overlay", bargap=0)
    figure.update_xaxes(title_text="seconds since the first call", row=len(runs), col=1)
    figure.update_xaxes(showticklabels=True, range=[0, max(run.timeline.end_s for run in runs) * 1.01])
    return _dressed(figure, sum(heights) + 46 * len(runs) + 130).update_layout(margin_t=84)


def occupancy(runs: Sequence[ReportedRun]) -> go.Figure:
    """KV over time: what is held for programs that go on, and everything that is not free."""
    figure = go.Figure()
    for run, colour in zip(runs, policies(runs).values(), strict=True):
        points = [point for point in run.timeline.occupancy if 0 <= point.at_s <= run.timeline.end_s]
        for name, values, dash in (
            ("held for live programs", [100 * point.useful for point in points], "solid"),
            ("all that is not free", [100 * point.used for point in points], "dot"),
        ):
            figure.add_scatter(
                x=[point.at_s for point in points],
                y=values,
                name=f"{label(run.policy)}: {name}",
                mode="lines",
                line={"color": colour, "width": 2 if dash == "solid" else 1.3, "dash": dash, "shape": "hv"},
                hovertemplate="%{y:.0f} % at %{x:.1f} s",
            )
    figure.update_xaxes(title_text="seconds since the first call", rangemode="tozero")
    figure.update_yaxes(title_text="% of KV capacity", range=[0, 104])
    return _dressed(figure, 320)


def tools_chart(runs: Sequence[ReportedRun]) -> go.Figure:
    """CPU seconds and peak memory of every tool call, by command."""
    calls = {
        run_number: [tool for aeg in run.timeline.programs.values() for tool in aeg.tools if tool.finished_s]
        for run_number, run in enumerate(runs)
    }
    commands = _heaviest(tool for tools in calls.values() for tool in tools)
    figure = make_subplots(
        cols=2, subplot_titles=("CPU seconds a tool call", "Peak memory a tool call"), horizontal_spacing=0.09
    )
    for policy, colour in policies(runs).items():
        own = [t for n, run in enumerate(runs) if run.policy == policy for t in calls[n]]
        own = [tool for tool in own if tool.label in commands]
        values = ([max(t.cpu_s, 1e-3) for t in own], [max(t.peak_memory_bytes, 1e5) / 1e6 for t in own])
        for column, unit in enumerate(("s", "MB"), 1):
            figure.add_box(
                x=[label(tool.label, 16) for tool in own],
                y=values[column - 1],
                name=label(policy),
                legendgroup=policy,
                offsetgroup=policy,
                showlegend=column == 1,
                marker={"color": colour, "size": 4, "opacity": 0.6},
                line={"width": 1.2},
                boxpoints="all",
                jitter=0.4,
                pointpos=0,
                hovertemplate="%{x}: %{y:.3g} " + unit,
                row=1,
                col=column,
            )
    figure.update_layout(boxmode="group")
    figure.update_xaxes(
        categoryorder="array", categoryarray=[label(command, 16) for command in commands], type="category"
    )
    figure.update_yaxes(type="log", dtick=1)
    figure.update_yaxes(title_text="seconds", col=1)
    figure.update_yaxes(title_text="MB", col=2)
    return _dressed(figure, 380)


def _heaviest(tools: Iterable[ToolNode]) -> list[str]:
    """The commands that used most CPU in all, heaviest first."""
    total: dict[str, float] = {}
    for tool in tools:
        total[tool.label] = total.get(tool.label, 0.0) + tool.cpu_s
    return sorted(total, key=lambda command: (-total[command], command))[:MAX_COMMANDS]


def _start(row: Row) -> float:
    return row.segments[0].start_s if row.segments else float("inf")


def _segments(figure: go.Figure, panel: int, rows: Sequence[Row], kind: str, name: str, colour: str) -> None:
    pieces = [
        (index, row.program, segment)
        for index, row in enumerate(rows)
        for segment in row.segments
        if segment.kind == kind
    ]
    figure.add_bar(
        orientation="h",
        y=[index + 0.36 for index, _, _ in pieces],
        base=[segment.start_s for _, _, segment in pieces],
        x=[segment.end_s - segment.start_s for _, _, segment in pieces],
        width=0.52,
        marker={"color": colour, "line": {"width": 0}},
        name=name,
        legendgroup=kind,
        customdata=[[label(program), segment.start_s, segment.end_s] for _, program, segment in pieces],
        hovertemplate="%{customdata[0]}<br>" + name + ", %{x:.2f} s"
        "<br>%{customdata[1]:.2f} to %{customdata[2]:.2f} s<extra></extra>",
        row=panel,
        col=1,
    )


def _kv_outlines(rows: Sequence[Row]) -> tuple[list[float | None], list[float | None]]:
    """One closed outline a program: as high as the share of its context that is on the device."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for index, row in enumerate(rows):
        if not row.segments or not row.held:
            continue
        floor, start, end = index + 0.94, row.segments[0].start_s, row.segments[-1].end_s
        outline: list[tuple[float, float]] = [(start, floor)]
        for at_s, share in _kv_shares(row, start, end):
            outline += [(at_s, outline[-1][1]), (at_s, floor - 0.26 * share)]
        outline += [(end, outline[-1][1]), (end, floor), (start, floor)]
        xs += [x for x, _ in outline] + [None]
        ys += [y for _, y in outline] + [None]
    return xs, ys


def _kv_shares(row: Row, start: float, end: float) -> list[tuple[float, float]]:
    """(time, device tokens over context tokens) wherever either changes within the program's life."""
    changes: list[tuple[float, int | None]] = [(at, device) for at, device, _ in row.held]
    changes += [(at, None) for at, _ in row.context]
    shares: list[tuple[float, float]] = []
    tokens = 0
    for at, device in sorted(changes, key=lambda change: change[0]):
        tokens = tokens if device is None else device
        if start <= at <= end:
            context = row.context_tokens_at(at)
            shares.append((at, min(1.0, tokens / context) if context else 0.0))
    return shares


def _dressed(figure: go.Figure, height: int) -> go.Figure:
    """The look that all charts share; the page repaints text and grid for dark screens."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 64, "r": 16, "t": 64, "b": 48},
        font={"family": "system-ui, sans-serif", "size": 12.5},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "yref": "container"},
        hoverlabel={"namelength": -1},
    )
    figure.update_layout(legend={"y": 0.995, "yanchor": "top"})
    return figure
