"""A real batching engine, stepped by hand in virtual time: what the analytic engine is checked against."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random

from agentsched.core import events as ev
from agentsched.core.decisions import EngineOrder
from agentsched.core.events import StepReport
from agentsched.engines.analytic import Output
from agentsched.engines.contract import (
    Capabilities,
    EngineOutput,
    GenerateRequest,
    RequestRefused,
    Sampling,
    StepEngine,
    TokensOut,
)


class StepwiseEngine:
    """Any ``StepEngine`` behind the analytic engine's interface. Pieces become tokens drawn by key."""

    def __init__(self, engine: StepEngine, name: str = "e0") -> None:
        self.name = name
        self.next_s: float | None = None
        self.capacity_tokens = engine.capabilities.capacity_tokens
        self.block_tokens = engine.capabilities.block_tokens
        self.max_running = engine.capabilities.max_running
        self.host_tokens = engine.capabilities.host_capacity_tokens
        self.host_tokens_per_s = engine.capabilities.host_tokens_per_s
        self._engine = engine
        self._streams: dict[str, tuple[Random, list[int]]] = {}
        self._stepped: list[Output] = []
        self._refused: list[Output] = []

    def submit(
        self,
        call: str,
        program: str,
        pieces: Sequence[tuple[str, int]],
        prompt_tokens: int,
        output_tokens: int,
        now: float,
    ) -> None:
        """Queue a call; the output continues the stream of the last piece."""
        prompt = [token for key, count in pieces for token in self._tokens(key, count)]
        key, count = pieces[-1]
        recorded = self._tokens(key, count + output_tokens)[count:]
        request = GenerateRequest(
            call=call,
            program=program,
            prompt=prompt,
            sampling=Sampling(max_output_tokens=output_tokens),
            recorded=recorded,
        )
        try:
            self._engine.submit(request, now)
        except RequestRefused as refused:
            self._refused.append(ev.CallAborted(call=call, reason=str(refused)))
        if self.next_s is None:
            self.next_s = now

    def order(self, order: EngineOrder, now: float) -> None:
        self._engine.order([order], now)
        if self.next_s is None and self._engine.has_work:
            self.next_s = now

    def forget(self, program: str) -> None:
        return None

    def advance(self, now: float) -> list[Output]:
        """Deliver what the step that ends now gave, and begin the next."""
        outputs, self._stepped, self._refused = [*self._stepped, *self._refused], [], []
        if not self._engine.has_work:
            self.next_s = None
            return outputs
        took_s, stepped = self._engine.step(now)
        self._stepped = [o for o in stepped if not isinstance(o, TokensOut | ev.StepReport)]
        self.next_s = now + took_s
        return outputs

    def report(self, now: float, *, snapshot: bool = False) -> ev.StepReport:
        return self._engine.report(now, snapshot=snapshot)

    def check_invariants(self) -> None:
        self._engine.check_invariants()

    def _tokens(self, key: str, count: int) -> list[int]:
        random, tokens = self._streams.setdefault(key, (Random(key), []))
        vocabulary = self._engine.capabilities.vocabulary
        while len(tokens) < count:
            tokens.append(random.randrange(vocabulary))
        return tokens[:count]


class Timed:
    """A ``StepEngine`` whose steps take what passes on the clock until they are over.

    ``busy_s`` sums them, and ``cpu_s`` the processor time that the process had in them: where it computes
    on one thread, the difference is what others took of the core."""

    def __init__(self, engine: StepEngine, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._clock = engine, clock
        self.busy_s = self.cpu_s = 0.0

    @property
    def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    @property
    def has_work(self) -> bool:
        return self._engine.has_work

    def submit(self, request: GenerateRequest, now: float) -> None:
        self._engine.submit(request, now)

    def abort(self, call: str, now: float) -> None:
        self._engine.abort(call, now)

    def order(self, orders: Sequence[EngineOrder], now: float) -> None:
        self._engine.order(orders, now)

    def step(self, now: float) -> tuple[float, list[EngineOutput]]:
        began_s, began_cpu_s = self._clock(), time.process_time()
        _, outputs = self._engine.step(now)
        took_s = self._clock() - began_s
        self.busy_s += took_s
        self.cpu_s += time.process_time() - began_cpu_s
        return took_s, outputs

    def report(self, now: float, *, snapshot: bool = False) -> StepReport:
        return self._engine.report(now, snapshot=snapshot)

    def check_invariants(self) -> None:
        self._engine.check_invariants()
