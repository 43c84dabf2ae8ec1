"""What ours is to reach, and whether it does: the summary at the head of the tables.

Of every goal the worst of its cells counts, means over seeds, unless it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean

from agentsched.core import POLICY_NAMES
from agentsched.workloads.figures import FIGURES, Figure
from agentsched.workloads.grid.groups.arriving import ORDERED, OVERLOAD, sustained_rate
from agentsched.workloads.grid.groups.larger import NO_HOST, WITH_HOST
from agentsched.workloads.grid.groups.pressing import DISTURBED
from agentsched.workloads.grid.groups.runs import BASELINE, OURS, YARDSTICK
from agentsched.workloads.grid.results import Goal, Made, Place
from agentsched.workloads.meter import WINDOW_S
from agentsched.workloads.summary import Summary

BY_NAME = {figure.name: figure for figure in FIGURES}
MEAN, P99 = BY_NAME["TCT mean, s"], BY_NAME["TCT P99, s"]
STEADY, PACKED = BY_NAME["tasks an hour, steady"], BY_NAME["of the packing bound"]
BASELINES = tuple(policy for policy in POLICY_NAMES if policy != OURS)
UNPRESSED = 0.85
RAMP_WINDOWS = 2
DRAINED = 0.95
"""The last programs of a drain run nearly alone, and tell nothing of throughput."""

Worst = tuple[float, str]
"""A value, and where it was found."""


def goals_of(made: Made) -> list[Goal]:
    """Every goal that has cells, in the order of the groups."""
    return [goal for goals in _ALL for goal in goals(made)]


def _goal(
    what: str, wanted: str, found: Sequence[Worst], bound: float, *, least: bool, form: str = "{:.2f}"
) -> Iterator[Goal]:
    """``least``: the values are to be ``bound`` or more; else, or less."""
    if found:
        value, where = min(found) if least else max(found)
        reached = value >= bound if least else value <= bound
        text = form.format(value) + (f" ({where})" if where else "")
        yield Goal(what=what, wanted=wanted, found=text, reached=reached)


def _name(place: Place, policy: str = "") -> str:
    words = (f"{place.case} at {place.at:g}", place.row, f"to {policy}" if policy else "")
    return ", ".join(word for word in words if word)


def _mean(made: Made, figure: Figure, place: Place, policy: str = OURS) -> float | None:
    values = made.values(figure, place, policy)
    return fmean(values.values()) if values else None


def _gains(
    made: Made, figure: Figure, places: Iterable[Place], over: Sequence[str] = (BASELINE,)
) -> list[Worst]:
    """How many times as good as each of the policies ``over`` ours is, where less is better."""
    found = ((p, policy, made.ratio(figure, p, OURS, policy)) for p in places for policy in over)
    return [
        (1 / r.mean, _name(p, policy if len(over) > 1 else "")) for p, policy, r in found if r is not None
    ]


def _packing(made: Made) -> Iterator[Goal]:
    for case in made.cases("packing"):
        bound = 0.88 if case.endswith("200k") else 0.93
        places = made.places("packing", case)
        found = [(v, _name(p)) for p in places if (v := _mean(made, PACKED, p)) is not None]
        what = f"{case}: tasks an hour of the packing bound"
        yield from _goal(what, f">= {bound}", found, bound, least=True, form="{:.3f}")
    places = made.places("packing")
    ratios = ((p, made.ratio(STEADY, p, OURS, YARDSTICK)) for p in places)
    found = [(r.mean, _name(p)) for p, r in ratios if r is not None]
    yield from _goal("tasks an hour of clairvoyant's", ">= 0.95", found, 0.95, least=True, form="{:.3f}")


def _pressed(made: Made) -> Iterator[Goal]:
    for place in made.places("at-once"):
        name = f"{place.case}, {place.at:g} at once"
        yield from _goal(
            f"{name}: mean TCT, times as good as {BASELINE}",
            ">= 4",
            _gains(made, MEAN, [place]),
            4,
            least=True,
        )
        yield from _goal(f"{name}: P99 TCT, the same", ">= 6", _gains(made, P99, [place]), 6, least=True)
        best = _gains(made, MEAN, [place], BASELINES)
        yield from _goal(f"{name}: mean TCT, than the best baseline", ">= 1.6", best, 1.6, least=True)


def _tails(made: Made) -> Iterator[Goal]:
    places = [p for group in ("closed", "at-once") for p in made.places(group)]
    ratios = ((p, b, made.ratio(P99, p, OURS, b)) for p in places for b in BASELINES)
    found = [(r, _name(p, b)) for p, b, r in ratios if r is not None]
    low = [(r.low, name) for r, name in found if r.low is not None]
    high = [(r.high, name) for r, name in found if r.high is not None]
    worse, over = (sum(end > 1.02 for end, _ in ends) for ends in (low, high))
    what = f"P99 TCT to every baseline, lower end of the interval ({worse} of {len(low)} are over)"
    yield from _goal(what, "<= 1.02", low, 1.02, least=False)
    what = f"P99 TCT to every baseline, upper end of the interval ({over} of {len(high)} are over)"
    yield from _goal(what, "<= 1.02", high, 1.02, least=False)


def _unpressed(made: Made) -> Iterator[Goal]:
    worst: list[Worst] = []
    for place in (p for p in made.places("closed") if p.at < UNPRESSED):
        for figure in FIGURES:
            found = made.ratio(figure, place, OURS, BASELINE)
            if found is not None and figure.better and not figure.name.startswith("decision"):
                loss = found.mean if figure.better == "less" else 1 / found.mean
                worst.append((loss, f"{figure.name}, {_name(place)}"))
    what = f"below pressure {UNPRESSED}: any measure, times {BASELINE}'s"
    yield from _goal(what, "<= 1.01", worst, 1.01, least=False, form="{:.3f}")


def _recomputed(made: Made) -> Iterator[Goal]:
    """Judged a run at a time: each is held against its own bound."""
    for case in made.cases("closed"):
        places = made.places("closed", case)
        runs = [(s, _name(p)) for p in places for s in made.summaries(p, OURS).values()]
        found = [
            (s.recompute_over_bound or math.inf, name)
            for s, name in runs
            if s.recompute_bound_tokens is not None and s.recomputed_tokens > 0.02 * s.context_tokens
        ]
        what = f"{case}: recomputed tokens over the bound, where more than 2 % of context"
        if any(s.recompute_bound_tokens is not None for s, _ in runs):
            yield from _goal(what, "<= 1.10", found or [(0.0, "nowhere more")], 1.10, least=False)


def _arriving(made: Made) -> Iterator[Goal]:
    for case in made.cases("open"):
        places = made.places("open", case)
        peak = max((fmean(each) for p in places if (each := _courses(made, p))), default=0.0)
        for place in places:
            courses = _courses(made, place)
            if place.at == OVERLOAD and courses:
                kept = fmean(courses) / peak
                what = f"{case}: useful tokens a second in overload, of their peak"
                yield from _goal(what, ">= 0.95", [(kept, _name(place))], 0.95, least=True)
                drain = [(d, "") for s in made.summaries(place, OURS).values() if (d := _drain(s))]
                what = f"{case}: tasks an hour while the backlog drains, of those before"
                yield from _goal(what, ">= 0.95", drain, 0.95, least=True)
    for place in made.places("order"):
        for policy, name in ORDERED.items():
            found = _gains(made, BY_NAME["slowdown mean"], [place], [policy])
            what = f"{place.case}: mean slowdown at 0.9 of saturation, than {name}"
            yield from _goal(what, ">= 2", found, 2, least=True)


def _courses(made: Made, place: Place) -> list[float]:
    """Useful tokens a second while programs arrive, after the ramp, of each seed."""
    found = []
    for summary in made.summaries(place, OURS).values():
        windows = (summary.useful_by_window or [])[RAMP_WINDOWS : _arrival_windows(summary)]
        found += [fmean(windows)] if windows else []
    return found


def _arrival_windows(summary: Summary) -> int:
    hours = (summary.conditions or {}).get("hours")
    return int(float(hours or 0) * 3600 / WINDOW_S)


def _drain(summary: Summary) -> float | None:
    """Tasks an hour after the last arrival, until nearly all have ended, over those before."""
    ended, last = summary.ended_by_window or [], _arrival_windows(summary)
    before, total = ended[RAMP_WINDOWS:last], sum(ended) + summary.unfinished
    after = [n for i, n in enumerate(ended) if i >= last and sum(ended[: i + 1]) <= DRAINED * total]
    return fmean(after) / fmean(before) if after and sum(before) else None


def _sustained(made: Made) -> Iterator[Goal]:
    for case in made.cases("sustained"):
        rows = dict.fromkeys(place.row for place in made.places("sustained", case))
        # Of each kind of arrivals the longest: the others were to find the rate.
        for row in {row.rpartition(",")[0]: row for row in rows}.values():
            stretches = {policy: stretches_of(made, case, row, policy) for policy in (OURS, YARDSTICK)}
            if not all(stretches.values()):
                continue
            found = {policy: sustained_rate(known) for policy, known in stretches.items()}
            shares = ", ".join(f"{policy} {rate:.3f}" for policy, rate in found.items())
            what = f"{case}, {row}: sustained rate, of clairvoyant's"
            worst = [(found[OURS] / found[YARDSTICK], f"of the packing bound: {shares}")]
            yield from _goal(what, ">= 0.93", worst, 0.93, least=True, form="{:.3f}")


def stretches_of(made: Made, case: str, row: str, policy: str) -> dict[float, float]:
    """Of each rate that was tried: mean TCT over that alone."""
    known: dict[float, float] = {}
    for place in made.places("sustained", case):
        summaries = made.summaries(place, policy).values()
        if place.row == row and policy in made.policies(place):
            whole = summaries and not any(s.unfinished for s in summaries)
            stretches = made.values(BY_NAME["mean TCT over alone"], place, policy)
            known[place.at] = fmean(stretches.values()) if whole and stretches else math.inf
    return known


def _larger(made: Made) -> Iterator[Goal]:
    for place in made.places("host-tier"):
        bound = 1.25 if place.row == NO_HOST else 2.0
        what = f"{place.case}, {place.row}: mean TCT, times as good as {BASELINE}"
        yield from _goal(what, f">= {bound:g}", _gains(made, MEAN, [place]), bound, least=True)
        if place.row == NO_HOST:
            tail = _gains(made, P99, [place])
            yield from _goal(f"{place.case}, {place.row}: P99 TCT, the same", ">= 1", tail, 1, least=True)
        if place.row == WITH_HOST:
            without = made.values(MEAN, place._replace(row=NO_HOST), BASELINE)
            own = made.values(MEAN, place, OURS)
            if without and own:
                value = fmean(without.values()) / fmean(own.values())
                what = f"{place.case}, {place.row}: mean TCT, than {BASELINE} without it"
                yield from _goal(what, ">= 2", [(value, "")], 2, least=True)
    for group in ("engines", "many-engines"):
        for place in made.places(group):
            what = f"{place.case}, {place.row}: mean TCT, times as good as {BASELINE}"
            yield from _goal(what, ">= 2.5", _gains(made, MEAN, [place]), 2.5, least=True)


def _met(made: Made) -> Iterator[Goal]:
    for place in (p for p in made.places("slo") if len(made.policies(p)) > 1):
        base, ours = (_mean(made, BY_NAME["SLO attainment"], place, policy) for policy in (BASELINE, OURS))
        if base is not None and ours is not None:
            what = f"{_name(place)}: SLO attainment, where {BASELINE} has {base:.1%}"
            yield from _goal(what, ">= 99.5 %", [(ours, "")], 0.995, least=True, form="{:.1%}")


def _robust(made: Made) -> Iterator[Goal]:
    for row in filter(None, DISTURBED):
        found = []
        for place in (p for p in made.places("disturbed") if p.row == row):
            own, usual = _mean(made, MEAN, place), _mean(made, MEAN, place._replace(row=""))
            if own and usual:
                found.append((own / usual, place.case))
        yield from _goal(
            f"{row}: mean TCT, times the undisturbed", "<= 1.05", found, 1.05, least=False, form="{:.3f}"
        )
    for figure, sign in ((MEAN, -1), (STEADY, 1)):
        gains = []
        for place in (p for p in made.places("sweep") if p.row):
            own, usual = _mean(made, figure, place), _mean(made, figure, place._replace(row=""))
            if own and usual:
                gains.append(((own / usual) ** sign - 1, f"{place.case}, {place.row}"))
        yield from _goal(
            f"constants by hand: gain in {figure.name}", "< 5 %", gains, 0.05, least=False, form="{:.1%}"
        )


_ALL: tuple[Callable[[Made], Iterator[Goal]], ...] = (
    _packing,
    _pressed,
    _tails,
    _unpressed,
    _recomputed,
    _arriving,
    _sustained,
    _larger,
    _met,
    _robust,
)
