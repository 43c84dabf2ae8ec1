"""How programs grow: calls left, tokens added a call, and the context that they come to.

What tells is, in this order,

* the **first prompt**: programs of one agent begin alike (its system prompt and tools), so others
  count by how near their first prompt was, on a log scale;
* **calls done**, and the **context so far**: life tables (``lifetable``) say what lies ahead of those
  that got so far, from programs that ended and from those that still live;
* the **program's own growth**, blended with the growth of programs like it.

The final context is calls left times growth, under a ceiling: real contexts saturate (compaction,
context limits), and a straight line does not. Its spread is not assumed but measured: whenever a
program ends, what would have been predicted at several of its calls is held against what came, and
the ratios of real to predicted growth, kept by how many calls were done, give quantiles.

Stated priors answer first and fade with the first endings. All is deterministic: answers depend on
what was observed, never on what was asked before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from agentsched.graphs.lifetable import KERNEL, LifeTable, Table
from agentsched.graphs.samples import Window, amount, share

PRIOR_CALLS = 12.0
"""Calls of a program, on average, before any has ended."""

PRIOR_LASTING = 0.25
"""What has made many calls will make more: each call done adds this share of a call to those left."""

PRIOR_SATURATION = 0.3
"""Where no context has got yet, each further 8 % of size is the last for this share of programs."""

PRIOR_GROWTH_SHARE = 0.3
PRIOR_GROWTH_TOKENS = 1_500
"""Growth a call before any program has ended: this share of the first prompt, and no less than so many
tokens. Recorded coding agents add 800 to 1,700 a call, those of published SWE-bench runs 2,000 to 6,000,
however short the question that they began with."""

PRIOR_RATIOS = (0.05, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.1, 3.0)
"""Real over predicted growth before it was measured: as wide as it was on recorded coding sessions."""

PRIOR_WEIGHT_CALLS = 50.0
"""Calls that the prior growth is worth: those seen first are programs' first ones, which look around and
add little, so they say less than their number."""

OWN_WEIGHT_CALLS = 8.0
"""How many of a program's own calls the growth of others is worth."""

POOLED_WEIGHT_CALLS = 10.0
"""How many calls of programs that began alike the growth of all together is worth."""

CEILING_ENDINGS = 5
"""Below so many endings the ceiling is not trusted."""

OVERTIME_SHARE = 0.25
"""Past all tables a program is expected to make this share of its calls again."""

OVERSIZE_SHARE = 0.05
"""Past all tables a context is expected to grow by this share."""

CLASS_WIDTH = 0.05
"""Size classes of the first prompt, on a log scale."""

SAMPLES = 32
"""That stand for a distribution."""

MOST_RATIO = 20.0
FEW_RATIOS = 20
MEMORY_CALLS = 10_000
"""Calls after which counts of growth have faded to 1 / e."""


def _edges(first: float, factor: float, last: float) -> list[float]:
    """0, then whole numbers at least 1 apart that grow by ``factor``."""
    edges, step = [0.0, first], first
    while step < last:
        step = max(step + 1.0, float(round(step * factor)))
        edges.append(step)
    return edges


CALL_EDGES = _edges(1, 1.1, 4_000)
TOKEN_EDGES = _edges(256, 1.08, 4e6)


class Live:
    """What is known of a program that runs. ``marks`` are [calls done, tokens, largest context since]."""

    __slots__ = ("call_bucket", "calls", "first_tokens", "marks", "peak_tokens", "size", "token_bucket")

    def __init__(self, first_prompt_tokens: float) -> None:
        self.first_tokens = self.peak_tokens = first_prompt_tokens
        self.size = _size(first_prompt_tokens)
        self.calls = self.call_bucket = self.token_bucket = 0
        self.marks: list[list[float]] = [[0, first_prompt_tokens, first_prompt_tokens]]


class Grown(msgspec.Struct, frozen=True):
    """What ``Growth`` knows, as a value: (tokens, calls), faded by ``weight``."""

    classes: dict[int, tuple[float, float]]
    pooled: tuple[float, float]
    weight: float


class Contexts(msgspec.Struct, frozen=True):
    """What ``ContextModel`` knows, as a value, but for live programs."""

    calls: Table
    finals: Table
    growth: Grown
    ratios: list[list[float]]


class Growth:
    """Tokens grown and calls made, by size class and over all, fading."""

    __slots__ = ("_classes", "_pooled", "_weight")

    CLASSES = 256

    def __init__(self) -> None:
        self._classes: dict[int, tuple[float, float]] = {}
        self._pooled = (0.0, 0.0)
        self._weight = 1.0

    def add(self, size: int, tokens: float, calls: float) -> None:
        self._weight *= 1.0 + calls / MEMORY_CALLS
        if self._weight > 1e9:
            self._pooled = (self._pooled[0] / self._weight, self._pooled[1] / self._weight)
            self._classes = {
                key: (sums[0] / self._weight, sums[1] / self._weight) for key, sums in self._classes.items()
            }
            self._weight = 1.0
        tokens, calls = tokens * self._weight, calls * self._weight
        self._pooled = (self._pooled[0] + tokens, self._pooled[1] + calls)
        old = self._classes.pop(size, (0.0, 0.0))
        if len(self._classes) >= self.CLASSES:
            del self._classes[next(iter(self._classes))]
        self._classes[size] = (old[0] + tokens, old[1] + calls)

    def dump(self) -> Grown:
        return Grown(dict(self._classes), self._pooled, self._weight)

    def load(self, known: Grown) -> None:
        self._classes, self._pooled, self._weight = dict(known.classes), known.pooled, known.weight

    def tokens_per_call(self, size: int, prior: float) -> float:
        """Of programs that began alike; where little is known, of all, and at first ``prior``."""
        prior_calls = PRIOR_WEIGHT_CALLS * self._weight
        pooled = (self._pooled[0] + prior_calls * prior) / (self._pooled[1] + prior_calls)
        # The first calls of all say as little of programs that began alike as of others.
        calls = POOLED_WEIGHT_CALLS * self._weight + max(0.0, prior_calls - self._pooled[1])
        tokens = calls * pooled
        for away, weight in KERNEL:
            sums = self._classes.get(size + away)
            if sums is not None:
                tokens += weight * sums[0]
                calls += weight * sums[1]
        return tokens / calls


class ContextModel:
    """The above. Queries cost microseconds; ``observe_program`` well below a millisecond on average."""

    RATIOS = 200
    MAX_LIVE = 1 << 17
    """Past this, the program that began first is forgotten: hosts may never end them."""

    STAGES = 11
    """Ratios are kept by calls done: 0, 1, 2-3, 4-7, ..., 512 and more."""

    def __init__(self) -> None:
        begin = PRIOR_CALLS * (1.0 - PRIOR_LASTING)
        prior = [1.0 - (1.0 - 1.0 / (begin + PRIOR_LASTING * a)) ** (b - a) for a, b in pairwise(CALL_EDGES)]
        self._calls = LifeTable(CALL_EDGES, prior, OVERTIME_SHARE)
        self._finals = LifeTable(TOKEN_EDGES, [PRIOR_SATURATION] * (len(TOKEN_EDGES) - 1), OVERSIZE_SHARE)
        self._growth = Growth()
        self._live: dict[str, Live] = {}
        self._ratios = [Window(self.RATIOS) for _ in range(self.STAGES)]

    def observe_call(
        self, program: str, *, calls_done: int, tokens_now: int, first_prompt_tokens: int
    ) -> None:
        """Learn that a live program finished a call: its calls so far and its context after it.

        Raises ValueError on negative amounts, and learns nothing then.
        """
        amount("calls_done", calls_done)
        amount("tokens_now", tokens_now)
        amount("first_prompt_tokens", first_prompt_tokens)
        live = self._live.get(program)
        if live is None:
            if len(self._live) >= self.MAX_LIVE:
                del self._live[next(iter(self._live))]
            live = self._live[program] = Live(first_prompt_tokens)
        self._advance(live, calls_done, tokens_now)
        if _is_mark(calls_done):
            live.marks.append([calls_done, tokens_now, tokens_now])
        else:
            live.marks[-1][2] = max(live.marks[-1][2], tokens_now)

    def resume(self, program: str, *, calls_done: int, tokens_now: int, first_prompt_tokens: int) -> None:
        """A program is alive that is known from before: its way up to here teaches nothing new."""
        live = self._live[program] = Live(first_prompt_tokens)
        live.calls, live.peak_tokens = calls_done, max(tokens_now, first_prompt_tokens)
        live.call_bucket = self._calls.bucket(max(0.0, calls_done - 0.5))
        live.token_bucket = self._finals.bucket(live.peak_tokens)
        live.marks = [[calls_done, tokens_now, tokens_now]]

    def dump(self) -> Contexts:
        """All that was learned."""
        ratios = [stage.dump() for stage in self._ratios]
        return Contexts(self._calls.dump(), self._finals.dump(), self._growth.dump(), ratios)

    def load(self, known: Contexts) -> None:
        """Know that and no more. Raises ValueError where it does not fit."""
        ratios = [Window.loaded(self.RATIOS, stage) for stage in known.ratios]
        if len(ratios) != self.STAGES:
            raise ValueError(f"ratios are kept for {self.STAGES} stages")
        self._calls.load(known.calls)
        self._finals.load(known.finals)
        self._growth.load(known.growth)
        self._ratios = ratios

    def observe_program(
        self, *, calls: int, first_prompt_tokens: int, final_tokens: int, program: str = ""
    ) -> None:
        """Learn a program that ended; ``program`` names the one told of in ``observe_call``, if it was.

        Where a context shrank on its way, its largest size counts: that is what has to fit. Raises
        ValueError on no calls or negative amounts, and learns nothing then.
        """
        if amount("calls", calls) < 1:
            raise ValueError(f"calls must be >= 1, got {calls!r}")
        amount("first_prompt_tokens", first_prompt_tokens)
        amount("final_tokens", final_tokens)
        live = self._live.pop(program, None) or Live(first_prompt_tokens)
        self._compare(live, final_tokens)
        self._advance(live, calls, final_tokens)
        # a total of n lies in the bucket that ends with n
        end = max(live.call_bucket, self._calls.bucket(calls - 0.5))
        self._calls.observe(live.size, live.call_bucket, end, ended=True)
        self._finals.observe(live.size, live.token_bucket, live.token_bucket, ended=True)

    def forget(self, program: str) -> None:
        """A program went away without an end that could teach anything."""
        self._live.pop(program, None)

    def expected_calls_left(self, calls_done: int, first_prompt_tokens: int | None = None) -> float:
        """E[calls in all - done | calls in all > done]: at least 1.

        Without a first prompt, all programs together answer.
        """
        amount("calls_done", calls_done)
        ahead = self._calls.ahead(_size_or_none(first_prompt_tokens))
        return max(1.0, ahead.expected_end(calls_done) - calls_done + 0.5)

    def calls_left_samples(self, calls_done: int, first_prompt_tokens: int | None = None) -> list[float]:
        """Ascending samples of equal weight that stand for the calls left, each at least 1."""
        amount("calls_done", calls_done)
        ahead = self._calls.ahead(_size_or_none(first_prompt_tokens))
        return [max(1.0, math.ceil(end) - calls_done) for end in ahead.spread(calls_done, SAMPLES)]

    def growth_tokens_per_call(self, *, calls_done: int, tokens_now: int, first_prompt_tokens: int) -> float:
        """Tokens that a call and the gap after it add to the context."""
        amount("calls_done", calls_done)
        amount("tokens_now", tokens_now)
        amount("first_prompt_tokens", first_prompt_tokens)
        return self._growth_per_call(calls_done, tokens_now, first_prompt_tokens, _size(first_prompt_tokens))

    def _growth_per_call(
        self, calls_done: int, tokens_now: int, first_prompt_tokens: int, size: int
    ) -> float:
        prior = max(PRIOR_GROWTH_SHARE * first_prompt_tokens, PRIOR_GROWTH_TOKENS)
        others = self._growth.tokens_per_call(size, prior)
        own = max(0, tokens_now - first_prompt_tokens) if calls_done else 0
        return (own + OWN_WEIGHT_CALLS * others) / (calls_done + OWN_WEIGHT_CALLS)

    def expected_final_tokens(self, *, calls_done: int, tokens_now: int, first_prompt_tokens: int) -> float:
        """The largest context from now to the program's end, never below ``tokens_now``."""
        return self.expected_rest(calls_done, tokens_now, first_prompt_tokens)[1]

    def expected_rest(
        self, calls_done: int, tokens_now: int, first_prompt_tokens: int
    ) -> tuple[float, float]:
        """``expected_calls_left`` and ``expected_final_tokens``: who asks for both pays for one."""
        amount("calls_done", calls_done)
        amount("tokens_now", tokens_now)
        size = _size(amount("first_prompt_tokens", first_prompt_tokens))
        calls_left = max(1.0, self._calls.ahead(size).expected_end(calls_done) - calls_done + 0.5)
        line = tokens_now + calls_left * self._growth_per_call(
            calls_done, tokens_now, first_prompt_tokens, size
        )
        if self._finals.endings < CEILING_ENDINGS:
            return calls_left, line
        return calls_left, max(tokens_now, min(line, self._finals.ahead(size).expected_end(tokens_now)))

    def final_tokens_quantile(
        self, q: float, *, calls_done: int, tokens_now: int, first_prompt_tokens: int
    ) -> float:
        """The context that with probability ``q`` the program does not exceed any more."""
        share("q", q)
        mean = self.expected_final_tokens(
            calls_done=calls_done, tokens_now=tokens_now, first_prompt_tokens=first_prompt_tokens
        )
        ratios = self._stage_ratios(calls_done)
        return tokens_now + (mean - tokens_now) * ratios[min(len(ratios) - 1, int(q * len(ratios)))]

    def _advance(self, live: Live, calls: int, tokens: float) -> None:
        """``calls`` are done: whether there is a further one is not known yet."""
        grown = tokens - live.peak_tokens
        if calls > live.calls:
            self._growth.add(live.size, max(0.0, grown), calls - live.calls)
            live.calls = calls
        bucket = self._calls.bucket(max(0.0, calls - 0.5))
        if bucket > live.call_bucket:
            self._calls.observe(live.size, live.call_bucket, bucket, ended=False)
            live.call_bucket = bucket
        if grown > 0:
            live.peak_tokens = tokens
        bucket = self._finals.bucket(live.peak_tokens)
        if bucket > live.token_bucket:
            self._finals.observe(live.size, live.token_bucket, bucket, ended=False)
            live.token_bucket = bucket

    def _compare(self, live: Live, final_tokens: int) -> None:
        """Hold what would have been predicted at some calls of an ended program against what came."""
        peak = float(final_tokens)
        for done, now, largest in reversed(live.marks):
            peak = max(peak, largest)
            predicted = self.expected_final_tokens(
                calls_done=int(done), tokens_now=int(now), first_prompt_tokens=int(live.first_tokens)
            )
            ratio = (peak - now) / max(1.0, predicted - now)
            if done < live.calls or done == 0:
                self._ratios[self._stage(int(done))].add(min(MOST_RATIO, max(0.0, ratio)))

    def _stage(self, calls_done: int) -> int:
        return min(self.STAGES - 1, int(calls_done).bit_length())

    def _stage_ratios(self, calls_done: int) -> Sequence[float]:
        """Of this stage, else of the nearest earlier one that has enough, else the prior."""
        for stage in range(self._stage(calls_done), -1, -1):
            if len(self._ratios[stage].ordered) >= FEW_RATIOS:
                return self._ratios[stage].ordered
        return PRIOR_RATIOS


def _size(first_prompt_tokens: float) -> int:
    return round(math.log(max(1.0, first_prompt_tokens)) / CLASS_WIDTH)


def _size_or_none(first_prompt_tokens: int | None) -> int | None:
    return None if first_prompt_tokens is None else _size(amount("first_prompt_tokens", first_prompt_tokens))


def _is_mark(calls_done: int) -> bool:
    """1, 2, 3, 4, 6, 8, 12, 16, ...: a few calls for each doubling."""
    top = calls_done >> max(0, calls_done.bit_length() - 2)
    return calls_done > 0 and top << max(0, calls_done.bit_length() - 2) == calls_done
