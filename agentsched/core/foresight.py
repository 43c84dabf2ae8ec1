"""What a policy expects of a program: learned from what was seen, or, for the yardstick, known.

Two questions cover all that policies here ask about the future: how the program's context will grow
(``Forecast``), and how soon it comes back from its gap (``GapCurve``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

from agentsched.core.forecast import Forecast
from agentsched.core.state import Program, State

GapCurve = tuple[tuple[float, float], ...]
"""(elapsed, index): from ``elapsed`` seconds into the gap on, a second of holding is worth ``index``."""

MARKS_S = (0.0, 0.25, 0.55, 1.2, 2.7, 6.0, 13.0, 28.0, 62.0, 137.0, 300.0)
"""Where a learned curve is computed. Returns come in modes at the scale of seconds and of minutes: what is
known of a gap changes by the ratio of times, not by their difference."""

SOON_S = 1e-3


class Foresight(Protocol):
    """The two questions."""

    def forecast(self, state: State, program: Program) -> Forecast:
        """Its unshared context from now to its end."""
        ...

    def gap(self, state: State, program: Program) -> GapCurve:
        """Its gap's index over elapsed time; the first step begins at 0."""
        ...


def gap_index(gaps_s: Sequence[float], elapsed_s: float) -> float:
    """The best rate of return that any further holding time offers, 1/s:

        max over tau of  P(gap <= tau | gap > e) / E[min(gap, tau) - e | gap > e]

    for ascending ``gaps_s``, all longer than ``elapsed_s``. (The index of optimal stopping, Gittins, with
    the KV's memory as the cost.)
    """
    left = [gap - elapsed_s for gap in gaps_s]
    count = len(left)
    best = 0.0
    for returned, (held_s, tau_s) in enumerate(zip(accumulate(left), left, strict=True), 1):
        best = max(best, returned / (held_s + (count - returned) * tau_s + SOON_S))
    return best


def leaves_at_s(curve: GapCurve, price: float) -> float:
    """Elapsed seconds from which on the index stays below ``price``. Past its last step the curve falls
    as 1 / elapsed, as that of a Pareto tail does."""
    last_s, last = curve[-1]
    if last >= price:
        return max(last_s, SOON_S) * last / price
    leaves_s = last_s
    for begin_s, index in reversed(curve):
        if index >= price:
            break
        leaves_s = begin_s
    return leaves_s


def index_at(curve: GapCurve, elapsed_s: float) -> float:
    """The curve's value ``elapsed_s`` into the gap."""
    value = curve[0][1]
    for begin_s, index in curve:
        if begin_s > elapsed_s:
            return value
        value = index
    return value * curve[-1][0] / elapsed_s if elapsed_s > curve[-1][0] > 0 else value


def told_ends_s(state: State, program: Program) -> list[float]:
    """Ascending times that stand for the end of the program's gap, by what its running tools tell;
    empty unless all of them have told something."""
    ends_s: list[float] = []
    for tool in program.running.values():
        if not tool.told:
            return []
        durations_s = state.progress.durations_s(*tool.told[max(tool.told)])
        if not durations_s:
            return []
        own_s = [tool.began_s + duration_s for duration_s in durations_s]
        ends_s = [max(pair) for pair in zip(ends_s, own_s, strict=True)] if ends_s else own_s
    return ends_s


def told_curve(state: State, key: str, gaps_s: Sequence[float]) -> GapCurve:
    """The curve of a gap that ends like one of the ascending ``gaps_s``; past the last of them, that of one
    which has lasted so long."""
    later = [gap_s for gap_s in gaps_s if gap_s > SOON_S] or [SOON_S]
    marks = [0.0, *dict.fromkeys(later)]
    steps = [(mark, gap_index([gap for gap in later if gap > mark], mark)) for mark in marks[:-1]]
    return (*steps, (later[-1], gap_index(state.gaps.samples_beyond(key, later[-1]), later[-1])))


@dataclass(slots=True)
class _Compiled:
    curve: GapCurve
    uses_left: int
    uses: int


class Learned:
    """From the models that the state has learned; of how many calls are left, what its owner says counts
    first. Curves are compiled for a key now and then: after 1,
    2, 4, 8 and then every 16 uses, since a hundred samples change little by one."""

    MOST_USES = 16
    MOST_CURVES = 1024

    def __init__(self) -> None:
        self._curves: dict[str | None, _Compiled] = {}

    def forecast(self, state: State, program: Program) -> Forecast:
        tokens = program.expected_context_tokens
        first = program.first_prompt_tokens or tokens
        calls_left, final = state.contexts.expected_rest(program.calls_done, tokens, first)
        stated = program.expected_calls - program.calls_done
        return Forecast(
            now_tokens=max(0, tokens - program.shared_tokens),
            growth_tokens=(final - tokens) / calls_left,
            calls_left=stated if stated > 0 else calls_left,
        )

    def gap(self, state: State, program: Program) -> GapCurve:
        """By what its running tools tell, if they do, else by what such gaps were."""
        if program.gap_since_s is not None and (ends_s := told_ends_s(state, program)):
            gaps_s = [end_s - program.gap_since_s for end_s in ends_s]
            return told_curve(state, program.gap_key, gaps_s)
        return self.curve(state, program.gap_key)

    def curve(self, state: State, key: str | None) -> GapCurve:
        """That of gaps of a key; None: of all."""
        known = self._curves.get(key)
        if known is not None and known.uses_left > 0:
            known.uses_left -= 1
            return known.curve
        uses = min(self.MOST_USES, 2 * known.uses) if known else 1
        if known is None and len(self._curves) >= self.MOST_CURVES:
            self._curves.clear()
        compiled = self._curves[key] = _Compiled(self._compile(state, key), uses - 1, uses)
        return compiled.curve

    def _compile(self, state: State, key: str | None) -> GapCurve:
        beyond = state.gaps.samples_beyond
        return tuple((mark, gap_index(beyond(key, mark), mark)) for mark in MARKS_S)


class Rest(NamedTuple):
    """What is left of a program after some of its calls: calls, its largest context, the gap now."""

    calls: int
    peak_tokens: int
    gap_s: float


class Oracle(Protocol):
    """Knows what will happen."""

    def rest(self, program: str, calls_done: int) -> Rest: ...


class Known:
    """From an oracle: the yardstick for what prediction could gain."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def forecast(self, state: State, program: Program) -> Forecast:
        rest = self._oracle.rest(program.name, program.calls_done)
        tokens = program.expected_context_tokens
        calls = max(1, rest.calls)
        growth = max(0.0, (rest.peak_tokens - tokens) / calls)
        return Forecast(max(0, tokens - program.shared_tokens), growth, calls)

    def gap(self, state: State, program: Program) -> GapCurve:
        gap_s = self._oracle.rest(program.name, program.calls_done).gap_s
        return ((0.0, 1.0 / (gap_s + SOON_S)), (gap_s + 1.0, 0.0))
