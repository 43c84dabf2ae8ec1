"""A comparison as text: one full table in Markdown, and the short one of the README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from agentsched.workloads.figures import FIGURES
from agentsched.workloads.grid.groups.runs import BASELINE
from agentsched.workloads.grid.results import Goal, Measured, Point, Results

BEGIN = "<!-- POLICY TABLE: begin. Written by scripts/bench policies. -->"
END = "<!-- POLICY TABLE: end -->"
DETAILS = "[which, and every measure](agentsched/workloads/results/policies.md)"
SHOWN_PRESSURE = 2.0

WHOLE = ("closed",)
"""Groups of which every measure is shown; of the others those that their question is about."""
UNSORTED = ("sweep", "disturbed")
TIMES = ("TCT mean, s", "TCT P99, s")
SERVED = ("tasks an hour, steady", "of the packing bound")
SHOWN: Mapping[str, tuple[str, ...]] = {
    "packing": (*SERVED, *TIMES, "recomputed over context", "recomputed over the bound"),
    "ablation": (*TIMES, *SERVED, "recomputed over context"),
    "disturbed": (*TIMES, *SERVED, "post-tool TTFT P99, s", "recomputed over context"),
    "host-tier": (*TIMES, "post-tool TTFT P50, s", "tasks an hour, steady", "recomputed over context"),
    "engines": (*TIMES, *SERVED, "imbalance of engines", "moves between engines"),
    "many-engines": (*TIMES, "tasks an hour", "imbalance of engines", "moves between engines"),
    "open": (*SERVED, "mean TCT over alone", *TIMES, "useful tokens a second", "unfinished programs"),
    "order": ("slowdown mean", "slowdown max", *TIMES, "post-tool TTFT P99, s", "tasks an hour, steady"),
    "sustained": ("mean TCT over alone", *TIMES, "tasks an hour, steady", "unfinished programs"),
    "slo": ("SLO attainment", "SLO attainment, least of tenants", *TIMES, "fairness deviation"),
    "sweep": (*TIMES, *SERVED),
}
USUAL = (*TIMES, *SERVED, "post-tool TTFT P99, s", "recomputed over context")


def full_table(results: Results) -> str:
    """Goals first, then every group."""
    return "\n".join(_full(results)) + "\n"


def short_table(results: Results) -> str:
    """How many times as fast as the baseline, mean and P99 TCT, at the pressure nearest to 2; and how many
    goals are reached. Closed loops are its content; without them there is none."""
    closed = results.of("closed")
    if not closed:
        return f"{_reached(results.goals)}."
    at = min({p.at for p in closed}, key=lambda pressure: abs(pressure - SHOWN_PRESSURE))
    points = [point for point in closed if point.at == at]
    policies = [p for p in dict.fromkeys(point.policy for point in points) if p != BASELINE]
    lines = [
        f"Times as fast as `{BASELINE}` at pressure {at:g}: mean TCT / P99 TCT, {_seeds(points)}.",
        "",
        _row(["programs", *policies]),
        _rule(len(policies) + 1),
    ]
    for case in dict.fromkeys(point.case for point in points):
        own = {point.policy: point for point in points if point.case == case}
        lines.append(_row([case, *(_times(own[p]) if p in own else "" for p in policies)]))
    return "\n".join([*lines, "", f"{_reached(results.goals)}: {DETAILS}."])


def put_into(text: str, table: str) -> str:
    """``text`` with what is between its markers replaced. Raises ``ValueError`` if they are not there."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no place for the table between {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}"


def _full(results: Results) -> Iterator[str]:
    yield "# Policies compared"
    yield ""
    host = ", ".join(f"{name} {value}" for name, value in results.host.items())
    yield f"`{results.command}`, agentsched {results.version}; simulated engine of profile"
    yield f"`{results.profile}`; made on {host}."
    yield ""
    yield "## Goals"
    yield ""
    yield f"{_reached(results.goals)}."
    yield ""
    yield from _goals(results.goals)
    yield ""
    yield "## How to read what follows"
    yield ""
    yield f"Each cell: the mean over seeds, then the ratio to `{BASELINE}` (or to what the group says) with"
    yield "its 95 % interval (paired by seed). docs/simulate.md says what each measure is. Below a floor"
    yield "(0.05 s of TTFT, 0.01 of shares and of recomputed over context) a value counts as the floor."
    for group, about in results.about.items():
        yield ""
        yield f"## Group `{group}`"
        yield ""
        yield about
        yield from _whole(results.of(group)) if group in WHOLE else _listed(group, results.of(group))


def _reached(goals: Sequence[Goal]) -> str:
    return f"{sum(goal.reached is True for goal in goals)} of {len(goals)} goals are reached"


def _goals(goals: Sequence[Goal]) -> Iterator[str]:
    yield _row(["goal", "wanted", "found, worst case", "reached"])
    yield _rule(4)
    for goal in goals:
        reached = {True: "yes", False: "**no**", None: ""}[goal.reached]
        yield _row([goal.what, goal.wanted, goal.found, reached])


def _whole(points: Sequence[Point]) -> Iterator[str]:
    """Every measure: a table for each pressure, a column for each policy."""
    for case, at in dict.fromkeys((point.case, point.at) for point in points):
        own = [point for point in points if (point.case, point.at) == (case, at)]
        yield ""
        yield f"### {_title(own[0])}"
        yield ""
        yield _row(["measure", *(point.policy for point in own)])
        yield _rule(len(own) + 1)
        for figure in FIGURES:
            values = [point.measures.get(figure.name) for point in own]
            if any(value is not None for value in values):
                yield _row([figure.name, *(_cell(figure.form, value) for value in values)])
        yield from _stops(own)


def _listed(group: str, points: Sequence[Point]) -> Iterator[str]:
    """A table for each case, a line for each policy in each place."""
    chosen = SHOWN.get(group, USUAL)
    figures = sorted((f for f in FIGURES if f.name in chosen), key=lambda f: chosen.index(f.name))
    for case in dict.fromkeys(point.case for point in points):
        own = [point for point in points if point.case == case]
        shown = [f for f in figures if any(f.name in point.measures for point in own)]
        yield ""
        yield f"### {case}, packing bound {own[0].packing_tasks_per_hour:,.4g} an hour"
        yield ""
        yield _row(["at", _amounts(own), "policy", "seeds", *(figure.name for figure in shown)])
        yield _rule(4 + len(shown))
        for point in own if group in UNSORTED else sorted(own, key=_order):
            values = [_cell(figure.form, point.measures.get(figure.name)) for figure in shown]
            policy = ", ".join(filter(None, (point.policy, point.row)))
            yield _row([f"{point.at:g}", f"{point.amount:,.4g}", policy, str(point.seeds), *values])
        yield from _stops(own)


def _order(point: Point) -> tuple[str, str, float]:
    """What was searched for one policy stands together; else policies are beside each other."""
    return point.row, point.policy if point.group == "sustained" else "", point.at


def _amounts(points: Sequence[Point]) -> str:
    return "an hour" if points[0].course else "at once"


def _stops(points: Sequence[Point]) -> Iterator[str]:
    """What is missing, and why."""
    stopped = [point for point in points if point.stopped]
    if stopped:
        yield ""
    for point in stopped:
        why = "; ".join(dict.fromkeys(point.stopped or []))
        row = f", {point.row}" if point.row else ""
        yield f"Not measured: {point.policy}{row} at {point.at:g}, {len(point.stopped or [])} seeds: {why}."


def _title(point: Point) -> str:
    bound = f"packing bound {point.packing_tasks_per_hour:,.4g} an hour"
    return f"{point.case}, pressure {point.at:g}: {point.amount:g} at once, {_seeds([point])} ({bound})"


def _cell(form: str, value: Measured | None) -> str:
    if value is None:
        return ""
    text, ratio = form.format(value.mean), value.ratio
    if ratio is None:
        return text
    if ratio.low is None:
        return f"{text} ({ratio.mean:.3g}x)"
    return f"{text} ({ratio.mean:.3g}x: {ratio.low:.3g} to {ratio.high:.3g})"


def _times(point: Point) -> str:
    """The inverse of the ratios: times as fast."""
    measured = [point.measures.get(name) for name in TIMES]
    ratios = [each.ratio if each is not None else None for each in measured]
    return " / ".join("" if ratio is None else f"{1 / ratio.mean:.2f}" for ratio in ratios)


def _seeds(points: Sequence[Point]) -> str:
    least, most = min(point.seeds for point in points), max(point.seeds for point in points)
    many = f"{most}" if least == most else f"{least} to {most}"
    return "one seed" if most == 1 else f"{many} seeds"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns
