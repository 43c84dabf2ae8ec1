"""An engine whose calls take fixed times, however many there are: for measuring the core, not serving.

It computes nothing and costs next to nothing, so that a simulation with it spends its time in the core.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import CallFinished, CallStarted, FirstToken, Held, StepReport
from agentsched.engines.analytic import Output

START_S, FIRST_TOKEN_S, FINISH_S = 0.05, 0.5, 4.0
"""After the submission of a call."""

PREFILL_TOKENS_PER_S = 20_000.0


class FixedEngine:
    """Reports what programs hold as the core expects it: all of their last call's context."""

    block_tokens = 16
    host_tokens = 0
    host_tokens_per_s = 0.0
    max_running = 1_000_000

    def __init__(self, name: str, capacity_tokens: int) -> None:
        self.name, self.capacity_tokens = name, capacity_tokens
        self._due: list[tuple[float, int, Output]] = []
        self._tie = 0
        self._context: dict[str, int] = {}
        self._changed: dict[str, None] = {}
        self._prefilled_tokens = 0

    @property
    def next_s(self) -> float | None:
        return self._due[0][0] if self._due else None

    def submit(
        self,
        call: str,
        program: str,
        pieces: Sequence[tuple[str, int]],
        prompt_tokens: int,
        output_tokens: int,
        now: float,
    ) -> None:
        cached = min(self._context.get(program, 0), prompt_tokens)
        self._context[program] = prompt_tokens + output_tokens
        self._changed[program] = None
        self._prefilled_tokens += prompt_tokens - cached
        self._say(now + START_S, CallStarted(call=call, cached_tokens=cached))
        self._say(now + FIRST_TOKEN_S, FirstToken(call=call))
        finished = CallFinished(
            call=call, prompt_tokens=prompt_tokens, cached_tokens=cached, output_tokens=output_tokens
        )
        self._say(now + FINISH_S, finished)

    def _say(self, when_s: float, output: Output) -> None:
        self._tie += 1
        heapq.heappush(self._due, (when_s, self._tie, output))

    def order(self, order: EngineOrder, now: float) -> None:
        """Nothing here is evicted or waits, so no order matters."""

    def forget(self, program: str) -> None:
        self._context.pop(program, None)
        self._changed.pop(program, None)

    def advance(self, now: float) -> list[Output]:
        outputs = []
        while self._due and self._due[0][0] <= now:
            outputs.append(heapq.heappop(self._due)[2])
        return outputs

    def report(self, now: float, *, snapshot: bool = False) -> StepReport:
        names, self._changed = (self._context if snapshot else self._changed), {}
        prefilled, self._prefilled_tokens = self._prefilled_tokens, 0
        return StepReport(
            engine=self.name,
            free_tokens=max(0, self.capacity_tokens - sum(self._context.values())),
            evictable_tokens=0,
            held=tuple(Held(program=name, device_tokens=self._context[name]) for name in names),
            snapshot=snapshot,
            prefilled_tokens=prefilled,
            running=len(self._due),
            step_s=prefilled / PREFILL_TOKENS_PER_S,
        )

    def check_invariants(self) -> None:
        assert self._changed.keys() <= self._context.keys()
