"""What it costs to bring a context up from host memory, through the engine as it serves.

A context is computed, and timed: that is what computing it again costs. Others take its place on the device,
so that it goes down to host memory, by orders that say that it alone is worth keeping there. Then its next
call comes: once on an idle engine, and once while others decode, whose steps before and after are timed too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from agentsched.core.decisions import EngineOrder, EngineTerms, Release, Retain, Segment, Worth
from agentsched.core.events import CallAborted, CallStarted, FirstToken
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import GenerateRequest, Sampling

if TYPE_CHECKING:
    from agentsched.engines.embedded.executor import TorchExecutor

_FOREVER_S = 1e9


class PromotionError(RuntimeError):
    """The engine did something else than to promote; the message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A context of ``tokens``; ``rows`` that decode at ``row_tokens`` meanwhile, watched for ``quiet_steps``
    before and after. ``filler_tokens``: the contexts that take its place."""

    tokens: int
    rows: int
    row_tokens: int
    filler_tokens: int
    quiet_steps: int
    rounds: int
    chunk_tokens: int

    @property
    def row_output_tokens(self) -> int:
        return 2 * self.quiet_steps + self.steps_at_most + 16

    @property
    def steps_at_most(self) -> int:
        """The rows must not end before the context has come."""
        return max(16, self.tokens // 32)

    @property
    def kv_tokens(self) -> int:
        """The context and the rows at once, and a block to spare for each."""
        rows = self.rows * (self.row_tokens + self.row_output_tokens + 32)
        return (self.tokens + self.filler_tokens + rows + 64) // 16 * 16

    @property
    def host_tokens(self) -> int:
        return (self.tokens // 16 + 4) * 16


@dataclass(slots=True)
class Promoted:
    """Seconds, one a round; ``slowed`` is by what share the others' steps were longer meanwhile."""

    load: Load
    recompute_s: list[float] = field(default_factory=list)
    promote_s: list[float] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)
    steps_meanwhile: list[int] = field(default_factory=list)
    slowed: list[float] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        """Of what computing again costs."""
        return [up / again for up, again in zip(self.promote_s, self.recompute_s, strict=True)]

    def figures(self) -> dict[str, int | list[float] | list[int]]:
        return {
            "tokens": self.load.tokens,
            "recompute_s": self.recompute_s,
            "promote_s": self.promote_s,
            "promote_over_recompute": self.shares,
            "promote_beside_decode_s": self.beside_s,
            "decoding_rows": self.load.rows,
            "steps_meanwhile": self.steps_meanwhile,
            "decode_slowed": self.slowed,
        }

    def lines(self) -> list[str]:
        """For people."""
        tokens, rows = self.load.tokens, self.load.rows
        again, up, beside, slowed = map(
            statistics.median, (self.recompute_s, self.promote_s, self.beside_s, self.slowed)
        )
        return [
            f"{tokens:,} tokens from host memory: {up:.3f} s, computed again: {again:.3f} s; "
            f"while {rows} calls decode: {beside:.3f} s, their steps {slowed:+.1%}"
        ]

    def goals(self) -> dict[str, dict[str, float | bool]]:
        share, slowed = statistics.median(self.shares), statistics.median(self.slowed)
        return {
            "promotion over recomputing (at most)": {
                "value": round(share, 4),
                "want": round(1 / 3, 3),
                "met": share <= 1 / 3,
            },
            "others' decode slowed by promotion (at most)": {
                "value": round(slowed, 4),
                "want": 0.1,
                "met": slowed <= 0.1,
            },
        }


def promote(executor: TorchExecutor, load: Load, say: Callable[[str], None]) -> Promoted:
    """Measure it on an executor with the load's KV. Raises ``PromotionError``, and ``ValueError`` where host
    memory is too small."""
    served = _Served(executor, load)
    made = Promoted(load)
    for number in range(load.rounds):
        context, program = served.fresh(load.tokens), f"kept {number}"
        served.retain(program)
        made.recompute_s.append(served.answer(program, context))
        served.push_out(program, load.tokens)
        made.promote_s.append(served.answer(program, context, promoted=True))
        served.push_out(program, load.tokens)
        took_s, steps, slowed = served.beside(program, context)
        served.release(program)
        made.beside_s.append(took_s)
        made.steps_meanwhile.append(steps)
        made.slowed.append(slowed)
        say(
            f"promotion of {load.tokens:,} tokens, round {number + 1} of {load.rounds}: "
            f"{made.recompute_s[-1]:.3f} s to compute, {made.promote_s[-1]:.3f} s to bring up, "
            f"others slowed by {slowed:.1%} over {steps} steps"
        )
    return made


class _Served:
    """An engine with a host tier, in real time."""

    def __init__(self, executor: TorchExecutor, load: Load) -> None:
        # What imports torch settles how many threads there are, and whether kernels are interpreted.
        from agentsched.engines.embedded.transfer import HostMemory

        self._load = load
        tier = HostMemory(executor.pools, blocks=load.host_tokens // 16, block_tokens=16)
        self._engine = BatchingEngine(
            executor, "bench", host_tier=tier, chunk_tokens=load.chunk_tokens, max_running=load.rows + 2
        )
        self._random, self._vocabulary = Random(0), executor.vocabulary
        self._calls = self._orders = 0

    def fresh(self, tokens: int) -> list[int]:
        """A context that was never computed."""
        return [self._random.randrange(self._vocabulary) for _ in range(tokens)]

    def retain(self, program: str) -> None:
        """Of all that leaves the device this alone goes to host memory."""
        worth = (Worth(until_s=_FOREVER_S, value=1.0),)
        segment = Segment(start_tokens=0, end_tokens=1 << 30, device=(), host=worth)
        self._order(EngineTerms, host_price=0.5)
        self._order(Retain, program=program, segments=(segment,), lease_until_s=_FOREVER_S)

    def release(self, program: str) -> None:
        self._order(Release, program=program)

    def _order(self, kind: type[EngineOrder], **fields: Any) -> None:
        self._orders += 1
        self._engine.order([kind(cause=0, epoch=1, seq=self._orders, engine="engine", **fields)], _now())

    def answer(self, program: str, context: list[int], *, promoted: bool = False) -> float:
        """Seconds to the first token, of an engine that has nothing else to do."""
        began_s = time.perf_counter()
        call = self._submit(program, context, 1)
        self._until_first_tokens({call}, promoted)
        return time.perf_counter() - began_s

    def push_out(self, program: str, tokens: int) -> None:
        """Have others take the device."""
        size = self._load.filler_tokens
        for _ in range(self._load.kv_tokens // size + 1):
            self._submit("filler", self.fresh(size), 1)
            self._drain()
        held = {each.program: each for each in self._engine.report(_now(), snapshot=True).held}.get(program)
        if held is None or held.device_tokens or held.host_tokens < tokens - 16:
            raise PromotionError(f"the context should be in host memory alone; held are: {held}")

    def beside(self, program: str, context: list[int]) -> tuple[float, int, float]:
        """Seconds to the first token while others decode; in how many of their steps the context was on its
        way, and by what share these were longer. The step that computes the token is not counted."""
        load = self._load
        rows = [
            self._submit(f"row {row}", self.fresh(load.row_tokens), load.row_output_tokens)
            for row in range(load.rows)
        ]
        self._until_first_tokens(set(rows), False)
        before = self._steps(load.quiet_steps)
        began_s = time.perf_counter()
        call = self._submit(program, context, 1)
        ends = self._until_first_tokens({call}, True)
        after = self._steps(load.quiet_steps)
        for row in rows:
            self._engine.abort(row, _now())
        self._drain()
        steps = len(ends) - 1
        if not 1 <= steps <= load.steps_at_most:
            raise PromotionError(
                f"the context was on its way for {steps} steps of others, "
                f"and 1 to {load.steps_at_most} can be judged"
            )
        usual_s = (before + after) / (2 * load.quiet_steps)
        return ends[-1] - began_s, steps, (ends[-2] - began_s) / steps / usual_s - 1

    def _steps(self, count: int) -> float:
        began_s = time.perf_counter()
        for _ in range(count):
            self._engine.step(_now())
        return time.perf_counter() - began_s

    def _until_first_tokens(self, calls: set[str], promoted: bool) -> list[float]:
        """When each step ended, until all calls have a token; checks that ``promoted`` ones were cached."""
        ends, waiting = [], set(calls)
        while waiting:
            _, outputs = self._engine.step(_now())
            ends.append(_now())
            for output in outputs:
                match output:
                    case CallAborted(reason=reason):
                        raise PromotionError(f"a call failed: {reason}")
                    case CallStarted(call=started, cached_tokens=cached) if promoted and started in calls:
                        if cached < self._load.tokens - 16:
                            raise PromotionError(f"the engine found only {cached} tokens worth bringing up")
                    case FirstToken(call=answered):
                        waiting.discard(answered)
        return ends

    def _submit(self, program: str, prompt: list[int], output_tokens: int) -> str:
        self._calls += 1
        request = GenerateRequest(
            call=f"c{self._calls}",
            program=program,
            prompt=prompt,
            sampling=Sampling(max_output_tokens=output_tokens),
        )
        self._engine.submit(request, _now())
        return request.call

    def _drain(self) -> None:
        while self._engine.has_work:
            self._engine.step(_now())


def _now() -> float:
    return time.perf_counter()
