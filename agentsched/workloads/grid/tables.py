"""A comparison as text: one full table in Markdown, and the short one of the README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentsched.workloads.figures import FIGURES
from agentsched.workloads.grid.ratios import BASELINE, Measured, Point, Results

BEGIN = "<!-- POLICY TABLE: begin. Written by scripts/bench policies. -->"
END = "<!-- POLICY TABLE: end -->"
SHOWN_PRESSURE = 2.0


def full_table(results: Results) -> str:
    """Every measure of every policy, case and pressure."""
    return "\n".join(_full(results)) + "\n"


def short_table(results: Results) -> str:
    """How many times as fast as the baseline, mean and P99 TCT, at the pressure nearest to 2."""
    pressures = sorted({p.at for p in results.points if not p.open_loop})
    at = min(pressures, key=lambda pressure: abs(pressure - SHOWN_PRESSURE))
    points = [point for point in results.points if not point.open_loop and point.at == at]
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
    return "\n".join(lines)


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
    yield f"Each cell: the mean over seeds, then the ratio to `{BASELINE}` with its 95 % interval (paired by"
    yield "seed). docs/simulate.md says what each measure is. Below a floor (0.05 s of TTFT, 0.01 of"
    yield "recomputed over context, 0.01 of shares) a value counts as the floor in ratios."
    for open_loop in (False, True):
        groups = dict.fromkeys((p.case, p.at) for p in results.points if p.open_loop == open_loop)
        for case, at in groups:
            points = [point for point in results.of(case, open_loop=open_loop) if point.at == at]
            yield ""
            yield f"## {_title(points[0])}"
            yield ""
            yield from _one(points)


def _title(point: Point) -> str:
    bound = f"packing bound {point.packing_tasks_per_hour:,.4g} an hour"
    if point.open_loop:
        return (
            f"{point.case}, open arrivals: {point.amount:,.4g} an hour ({point.at:g} of the bound; {bound})"
        )
    return f"{point.case}, pressure {point.at:g}: {point.amount:g} at once, {point.seeds} seeds ({bound})"


def _one(points: Sequence[Point]) -> Iterator[str]:
    yield _row(["measure", *(point.policy for point in points)])
    yield _rule(len(points) + 1)
    for figure in FIGURES:
        values = [point.measures.get(figure.name) for point in points]
        if any(value is not None for value in values):
            yield _row([figure.name, *(_cell(figure.form, value) for value in values)])


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
    ratios = [point.measures[name].ratio for name in ("TCT mean, s", "TCT P99, s")]
    return " / ".join("" if ratio is None else f"{1 / ratio.mean:.2f}" for ratio in ratios)


def _seeds(points: Sequence[Point]) -> str:
    seeds = min(point.seeds for point in points)
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns
