"""The least that any retention recomputes, for one engine's realised order of calls.

**Recomputed** is what ``CallFinished.recomputed_tokens`` counts: prompt tokens prefilled again although
the engine had held them once, in whole blocks, over calls that ended well.

**The bound.** Fix when each call started and ended. Every token of every context is held by a running
call, or idle between two calls that have it in common: in a *gap*. For a gap over [s, e) of n tokens let
y be those that are let go somewhere in it. Then

    minimise sum(y)   with   0 <= y <= n   and, at every moment t,
    sum over gaps open at t of (n - y)  +  tokens in use by running calls at t  <=  capacity.

**Why nothing beats it.** Take any run with these starts and ends, and let y be what each gap's later call
found missing. Those tokens had been held, so each is prefilled again: the run recomputes at least
sum(y). The n - y others were there from s to e (a token gone in between would have had to be recomputed
by some call, which would have ended the gap), beside all that running calls used. They fit, so this y
is among those that are minimised over. What is left out makes the minimum only smaller:
tokens may be kept without the ones before them, outputs take room only once their call has ended, a
part of a block none at all, and letting go and fetching back take no time.

Tokens that contexts have in common (equal pieces after equal pieces) are one item: its accesses are
those of all programs, it is held once and recomputed once.

**What a log does not tell** is decided in favour of policies. A call that was preempted counts as an
access that uses no room. One that was aborted, or never ended, recomputes for nothing and also uses no
room; a later gap starts at its end. An engine's logs that give a start late (by a step) shorten what
is in use, and lengthen a gap only over time in which its tokens are in use: the run still fits.
A **host tier** is capacity here: what is in neither place was let go.

**How it is solved.** Moments at which all fits say nothing, nor does a moment whose open gaps include all
those of a neighbour that asks for at least as much. For the others let r(t) be the sum of y over the
gaps open at t. Then r(t) >= the excess at t, and the differences of r balance gaps that open with gaps
that close: a flow along time, with two entries a column. Such a matrix is totally unimodular, so in
whole blocks the optimum is whole, and no relaxation is lost by solving it as a linear program.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from agentsched.workloads.bounds.contexts import BoundsError, Path, Stem, Tree, without_last_token

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSpan:
    """One call as it ran: ``[start_s, end_s)`` in seconds, infinite if it never ended.

    ``context`` is ``prompt`` with the output behind it. ``ended``: it ended well. ``holds``: it held its
    whole prompt from start to end, so it was not preempted.
    """

    start_s: float
    end_s: float
    prompt: Path
    context: Path
    ended: bool = True
    holds: bool = True

    def __post_init__(self) -> None:
        if not _NEVER < self.start_s <= self.end_s or self.start_s == float("inf"):
            raise BoundsError(f"a call must start before it ends, got [{self.start_s}, {self.end_s})")
        if not self.prompt or not self.context:
            raise BoundsError(f"the call at {self.start_s} s has no prompt")


def recompute_bound(calls: Iterable[CallSpan], capacity_tokens: int, *, block_tokens: int = 1) -> int:
    """Tokens that every policy recomputes at least, had it these calls at these times on one engine.

    ``capacity_tokens`` counts device and host memory together. Raises ``BoundsError`` if running calls
    alone exceed it: then the times, the contexts or the capacity are not this run's.
    """
    if capacity_tokens < 1 or block_tokens < 1:
        raise BoundsError(
            f"capacity_tokens and block_tokens must be >= 1, got {capacity_tokens}, {block_tokens}"
        )
    history = _History(block_tokens)
    for call in sorted(calls, key=lambda call: (call.start_s, call.end_s)):
        history.add(call)
    return block_tokens * _least_let_go(history, capacity_tokens // block_tokens)


@dataclass(slots=True)
class _Range:
    """Tokens of a stem up to ``end`` (from the range before) that were last used together."""

    end: int
    idle_from_s: float
    in_use_until_s: float
    held_once: bool


class _History:
    """Gaps (start, end) -> blocks, and changes of what is in use, from calls in the order of starts.

    A call touches each stem from its head, so the ranges that it covers become one: adding a call costs
    its pieces and, spread over all calls, nothing more.
    """

    def __init__(self, block_tokens: int) -> None:
        self.gaps: defaultdict[tuple[float, float], int] = defaultdict(int)
        self.in_use: defaultdict[float, int] = defaultdict(int)
        self._block_tokens = block_tokens
        self._tree: Tree[list[_Range]] = Tree(list)

    def add(self, call: CallSpan) -> None:
        self._touch(call, without_last_token(call.prompt), counts=call.ended, holds=call.holds)
        if call.ended:
            self._touch(call, without_last_token(call.context), counts=False, holds=False)

    def _touch(self, call: CallSpan, path: Path, *, counts: bool, holds: bool) -> None:
        for stem, tokens in self._tree.along(path):
            self._touch_stem(stem, tokens, call, counts=counts, holds=holds)

    def _touch_stem(
        self, stem: Stem[list[_Range]], tokens: int, call: CallSpan, *, counts: bool, holds: bool
    ) -> None:
        ranges = stem.notes
        touched: list[_Range] = []
        low = 0
        while low < tokens:
            known = ranges.pop(0) if ranges else _Range(tokens, _NEVER, _NEVER, False)
            high = min(known.end, tokens)
            if high < known.end:
                ranges.insert(0, known)
            blocks = self._blocks(stem.start + low, stem.start + high)
            if counts and known.held_once and known.idle_from_s < call.start_s and blocks:
                self.gaps[known.idle_from_s, call.start_s] += blocks
            in_use_until_s = known.in_use_until_s
            if holds and in_use_until_s < call.end_s:
                self.in_use[max(call.start_s, in_use_until_s)] += blocks
                self.in_use[call.end_s] -= blocks
                in_use_until_s = call.end_s
            idle_from_s = max(known.idle_from_s, call.end_s)
            held_once = known.held_once or call.ended
            last = touched[-1] if touched else None
            if last and (last.idle_from_s, last.in_use_until_s, last.held_once) == (
                idle_from_s,
                in_use_until_s,
                held_once,
            ):
                last.end = high
            else:
                touched.append(_Range(high, idle_from_s, in_use_until_s, held_once))
            low = high
        ranges[:0] = touched

    def _blocks(self, start: int, end: int) -> int:
        """Blocks that end within these positions: a block belongs to its last token."""
        return end // self._block_tokens - start // self._block_tokens


@dataclass(slots=True)
class _Moment:
    """From one change to the next: ``excess`` blocks must be let go among the gaps that are open.
    ``opened`` and ``closed`` count gaps up to here."""

    excess: int
    opened: int
    closed: int


def _least_let_go(history: _History, capacity: int) -> int:
    gaps = history.gaps
    times = sorted({t for span in gaps for t in span} | set(history.in_use))
    place = {t: index for index, t in enumerate(times)}
    opening, closing = [0] * len(times), [0] * len(times)
    opened, closed = [0] * len(times), [0] * len(times)
    for (start, end), blocks in gaps.items():
        opening[place[start]] += blocks
        closing[place[end]] += blocks
        opened[place[start]] += 1
        closed[place[end]] += 1
    kept: list[_Moment] = []
    kept_at: list[int] = []
    idle = in_use = num_opened = num_closed = 0
    for index, t in enumerate(times):
        idle += opening[index] - closing[index]
        in_use += history.in_use.get(t, 0)
        num_opened, num_closed = num_opened + opened[index], num_closed + closed[index]
        if in_use > capacity:
            raise BoundsError(
                f"at {t} s running calls use {in_use} blocks, more than the capacity of {capacity}: the "
                "times, the contexts or the capacity given are not those of the run"
            )
        moment = _Moment(idle + in_use - capacity, num_opened, num_closed)
        if moment.excess > 0:
            _keep(kept, kept_at, moment, index)
    return _solve(gaps, place, kept, kept_at) if kept else 0


def _keep(kept: list[_Moment], kept_at: list[int], moment: _Moment, index: int) -> None:
    """Add a moment, unless a neighbour implies it; drop neighbours that it implies."""
    while kept:
        before = kept[-1]
        if moment.closed == before.closed and moment.excess <= before.excess:
            return  # the same gaps and more are open now, and no more has to go
        if moment.opened != before.opened or moment.excess < before.excess:
            break
        kept.pop()
        kept_at.pop()
    kept.append(moment)
    kept_at.append(index)


def _solve(
    gaps: dict[tuple[float, float], int], place: dict[float, int], kept: list[_Moment], kept_at: list[int]
) -> int:
    """The linear program over kept moments: columns are the gaps, then r of each moment."""
    first = np.searchsorted(kept_at, [place[start] for start, _ in gaps], side="left")
    after = np.searchsorted(kept_at, [place[end] for _, end in gaps], side="left")
    sizes: defaultdict[tuple[int, int], int] = defaultdict(int)
    for low, high, blocks in zip(first.tolist(), after.tolist(), gaps.values(), strict=True):
        if low < high:
            sizes[low, high] += blocks
    spans = np.array(list(sizes), dtype=np.int64)
    num_moments, num_gaps = len(kept), len(sizes)
    moments, columns = np.arange(num_moments), np.arange(num_gaps)
    closes = spans[:, 1] < num_moments
    # Row k: (gaps opening at k) - (gaps closed since k - 1) - r[k] + r[k - 1] = 0.
    rows = np.concatenate([spans[:, 0], spans[closes, 1], moments, moments[1:]])
    cols = np.concatenate([columns, columns[closes], num_gaps + moments, num_gaps + moments[:-1]])
    ones = [np.ones(num_gaps), -np.ones(int(closes.sum())), -np.ones(num_moments), np.ones(num_moments - 1)]
    balance = csr_array((np.concatenate(ones), (rows, cols)), shape=(num_moments, num_gaps + num_moments))
    lower = np.concatenate([np.zeros(num_gaps), [moment.excess for moment in kept]])
    upper = np.concatenate([list(sizes.values()), np.full(num_moments, np.inf)])
    # The stubs know no sparse matrix here; the function takes one.
    result = linprog(  # type: ignore[call-overload]
        np.concatenate([np.ones(num_gaps), np.zeros(num_moments)]),
        A_eq=balance,
        b_eq=np.zeros(num_moments),
        bounds=np.column_stack([lower, upper]),
        method="highs-ipm",
    )
    if result.status != 0:
        raise RuntimeError(f"the solver found no optimum of a bounded, feasible program: {result.message}")
    return round(float(result.fun))
