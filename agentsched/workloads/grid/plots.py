"""A comparison as plots: SVG files that are the same for the same results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from agentsched.workloads.grid.groups.arriving import OVERLOAD, OVERLOAD_HOURS
from agentsched.workloads.grid.groups.runs import BASELINE, OURS
from agentsched.workloads.grid.results import Point, Results
from agentsched.workloads.meter import WINDOW_S

COLOURS = {
    BASELINE: "#d9722e",
    "continuum": "#2e9467",
    "saga": "#8a5bc2",
    "thunderagent": "#8c6d46",
    "plas": "#c9a227",
    OURS: "#2f6fc4",
    "clairvoyant": "#7f8790",
}
OTHERS = ("#d1495b", "#14897b", "#5b6ee1", "#9c27b0", "#444444")
MARKERS = "osD^vPXh*<>"
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "agentsched",
}
STEADY = "tasks an hour, steady"
PANEL_IN = (3.2, 2.5)
LABEL_IN = 1.3
COLUMNS = 3


def write_plots(results: Results, folder: Path) -> list[Path]:
    """The plots that the results allow, as SVG files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = _colours(results.points)
    written = []
    with mpl.rc_context(STYLE):
        for name, group, draw in (
            ("policies-pressure", "closed", _pressure),
            ("policies-throughput", "closed", _throughput),
            ("policies-tail", "closed", _tail),
            ("policies-collapse", "open", _collapse),
            ("policies-overload", "open", _overload),
            ("policies-slowdown", "open", _stretch),
        ):
            # A run that was stopped, or had no steady part, is in no plot.
            points = [point for point in results.of(group) if STEADY in point.measures]
            if points:
                path = folder / f"{name}.svg"
                _panels(points, colours, draw).savefig(path, metadata={"Date": None})
                written.append(path)
    return written


def _panels(
    points: list[Point],
    colours: dict[str, tuple[str, str]],
    draw: Callable[[Axes, list[Point], dict[str, tuple[str, str]]], None],
) -> Figure:
    """One panel a case, and one legend for all."""
    cases = list(dict.fromkeys(point.case for point in points))
    columns = min(COLUMNS, len(cases))
    rows = math.ceil(len(cases) / columns)
    width_in = max(6.0, PANEL_IN[0] * columns)
    figure = Figure(figsize=(width_in, PANEL_IN[1] * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for case, axes in zip(cases, panels, strict=False):
        draw(axes, [point for point in points if point.case == case], colours)
        axes.set_title(case, fontsize=9.5, loc="left")
    for axes in list(panels)[len(cases) :]:
        axes.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    names = max(1, min(int(width_in / LABEL_IN), len(labels)))
    figure.legend(handles, labels, loc="outside upper center", ncols=names)
    return figure


def _pressure(axes: Axes, points: list[Point], colours: dict[str, tuple[str, str]]) -> None:
    """Mean slowdown of what each policy serves, by pressure."""
    _curves(axes, points, colours, "slowdown mean")
    axes.set(xlabel="pressure", ylabel="mean slowdown", yscale="log")
    _plain(axes.yaxis)


def _throughput(axes: Axes, points: list[Point], colours: dict[str, tuple[str, str]]) -> None:
    _curves(axes, points, colours, "of the packing bound")
    axes.axhline(1.0, color="#9aa3ad", linewidth=0.8, linestyle=":")
    axes.set(xlabel="pressure", ylabel="tasks an hour / bound", ylim=(0, None))


def _collapse(axes: Axes, points: list[Point], colours: dict[str, tuple[str, str]]) -> None:
    """Tasks an hour that are served, by those that arrive."""
    for policy, own in _by_policy(points).items():
        colour, marker = colours[policy]
        served = [point.measures[STEADY].mean for point in own]
        arriving = [point.amount for point in own]
        axes.plot(arriving, served, color=colour, marker=marker, markersize=4, label=policy)
    most = max(point.amount for point in points)
    axes.plot([0, most], [0, most], color="#9aa3ad", linewidth=0.8, label="all that arrive")
    bound = points[0].packing_tasks_per_hour
    axes.axhline(bound, color="#9aa3ad", linewidth=0.8, linestyle=":", label="packing bound")
    axes.set(xlabel="programs arriving an hour", ylabel="tasks served an hour", ylim=(0, 1.3 * bound))


def _overload(axes: Axes, points: list[Point], colours: dict[str, tuple[str, str]]) -> None:
    """Useful tokens over time, while twice what fits arrives and afterwards."""
    hours = OVERLOAD_HOURS
    for policy, own in _by_policy([point for point in points if point.at == OVERLOAD]).items():
        course = own[0].course or []
        times = [(number + 0.5) * WINDOW_S / 3600 for number in range(len(course))]
        axes.plot(times, course, color=colours[policy][0], linewidth=1.4, label=policy)
    axes.axvline(hours, color="#9aa3ad", linewidth=0.8, linestyle=":", label="nobody arrives any more")
    axes.set(xlabel="hours", ylabel="useful tokens a second", ylim=(0, None))


def _stretch(axes: Axes, points: list[Point], colours: dict[str, tuple[str, str]]) -> None:
    _curves(axes, points, colours, "mean TCT over alone")
    axes.set(xlabel="arrivals / packing bound", ylabel="mean TCT / alone", yscale="log")
    _plain(axes.yaxis)


def _tail(axes: Axes, points: list[Point], colours: dict[str, tuple[str, str]]) -> None:
    """Mean against P99: larger marks are higher pressures."""
    pressures = sorted({point.at for point in points})
    for policy, own in _by_policy(points).items():
        colour, marker = colours[policy]
        means = [point.measures["TCT mean, s"].mean for point in own]
        tails = [point.measures["TCT P99, s"].mean for point in own]
        axes.plot(means, tails, color=colour, linewidth=0.7, alpha=0.6)
        sizes = [14.0 + 12.0 * pressures.index(point.at) for point in own]
        axes.scatter(means, tails, s=sizes, color=colour, marker=marker, label=policy, linewidths=0)
    axes.set(xlabel="mean TCT, s", ylabel="P99 TCT, s", xscale="log", yscale="log")
    _plain(axes.xaxis)
    _plain(axes.yaxis)


def _curves(axes: Axes, points: list[Point], colours: dict[str, tuple[str, str]], measure: str) -> None:
    for policy, own in _by_policy(points).items():
        shown = [point for point in own if measure in point.measures]
        colour, marker = colours[policy]
        axes.plot(
            [point.at for point in shown],
            [point.measures[measure].mean for point in shown],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=2.0 if policy == OURS else 1.1,
            label=policy,
        )


def _plain(axis: Axis) -> None:
    """A logarithmic axis with a few plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _by_policy(points: Sequence[Point]) -> dict[str, list[Point]]:
    by_policy: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.at):
        by_policy.setdefault(point.policy, []).append(point)
    return by_policy


def _colours(points: Sequence[Point]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each policy: the same in all plots."""
    names = list(dict.fromkeys(point.policy for point in points))
    others = [name for name in names if name not in COLOURS]
    colours = COLOURS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    order = [*COLOURS, *others]
    return {name: (colours[name], MARKERS[order.index(name) % len(MARKERS)]) for name in names}
