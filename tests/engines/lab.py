"""Dealings with one engine in a test: calls on their way, orders, and what was reported."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

from agentsched.core.decisions import (
    EngineOrder,
    EngineTerms,
    Prefetch,
    Rank,
    Release,
    Retain,
    Segment,
    Worth,
)
from agentsched.core.events import CallFinished, CallStarted, FirstToken, StepReport
from agentsched.engines.contract import GenerateRequest, Sampling, TokenEngine, TokensOut
from agentsched.engines.streams import CallItem

CAPACITY_TOKENS = 1024
HOST_TOKENS = 2048
BLOCK_TOKENS = 16
PATIENCE_S = 60.0
FOREVER = float("inf")

_serial = itertools.count(1)


class Run:
    """One call on its way; what came of it so far."""

    def __init__(self, call: str, items: AsyncIterator[CallItem], journal: list[CallItem]) -> None:
        self.call = call
        self.items: list[CallItem] = []
        self._source = items
        self._journal = journal
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        # The contract promises an iterator that can be closed.
        async with aclosing(cast(Any, self._source)) as source:
            async for item in source:
                self.items.append(item)
                self._journal.append(item)
                self._moved.set()

    @property
    def tokens(self) -> list[int]:
        return [token for item in self.items if isinstance(item, TokensOut) for token in item.tokens]

    async def reached(self, kind: type[CallItem]) -> None:
        """Return when an item of this kind has come."""
        async with asyncio.timeout(PATIENCE_S):
            while not any(isinstance(item, kind) for item in self.items):
                assert not self._task.done(), f"{self.call} ended without {kind.__name__}: {self.items}"
                self._moved.clear()
                await self._moved.wait()

    @property
    def over(self) -> bool:
        return self._task.done()

    async def finished(self) -> CallFinished:
        """The call's good end. Raises what the call raised."""
        async with asyncio.timeout(PATIENCE_S):
            await self._task
        end = self.items[-1]
        assert isinstance(end, CallFinished), end
        return end

    async def hang_up(self) -> None:
        """Close the iterator early, as a client that goes away does."""
        assert not self._task.done(), f"{self.call} has ended already"
        self._task.cancel()
        await asyncio.wait([self._task])


class Lab:
    """One test's dealings with the engine."""

    def __init__(self, engine: TokenEngine) -> None:
        self.engine = engine
        self.journal: list[CallItem] = []
        self.reports: list[StepReport] = []
        self._epoch = next(_serial)
        self._seq = itertools.count()
        self._reported = asyncio.Event()
        self._reader = asyncio.create_task(self._read_reports())

    async def _read_reports(self) -> None:
        async for report in self.engine.reports():
            self.reports.append(report)
            self._reported.set()

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def until(self, holds: Callable[[Sequence[StepReport]], bool]) -> None:
        """Return when what was reported in this test makes ``holds`` true."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds(self.reports):
                self._reported.clear()
                await self._reported.wait()

    def name(self, what: str) -> str:
        return f"{what}-{self._epoch}-{next(_serial)}"

    def tokens(self, count: int) -> list[int]:
        """Tokens that no call has had before."""
        source = random.Random(next(_serial))
        return [source.randrange(self.engine.capabilities.vocabulary) for _ in range(count)]

    def call(
        self,
        prompt: list[int],
        *,
        program: str | None = None,
        output: int = 1,
        recorded: list[int] | None = None,
        call: str | None = None,
        stop_tokens: tuple[int, ...] = (),
        temperature: float = 0.0,
        salt: str = "",
        shared: int = 0,
        logprobs: int | None = None,
        grammar: str = "",
    ) -> Run:
        request = GenerateRequest(
            call=call or self.name("call"),
            program=program or self.name("program"),
            prompt=prompt,
            sampling=Sampling(
                max_output_tokens=output,
                stop_tokens=stop_tokens,
                temperature=temperature,
                logprobs=logprobs,
                grammar=grammar,
            ),
            recorded=recorded,
            salt=salt,
            shared_prefix_tokens=shared,
        )
        return Run(request.call, self.engine.generate(request), self.journal)

    async def cached(self, prompt: list[int], program: str | None = None, **more: Any) -> int:
        """How much of the prompt a call finds in the cache (which it then is in)."""
        return (await self.call(prompt, program=program, **more).finished()).cached_tokens

    async def fill(self, tokens: int) -> None:
        """Run a call that takes so many tokens of KV."""
        await self.call(self.tokens(tokens)).finished()

    async def occupied(self) -> Run:
        """A call that runs until it is hung up on."""
        run = self.call(self.tokens(BLOCK_TOKENS), output=700)
        await run.reached(FirstToken)
        return run

    async def submitted(self) -> None:
        """Let calls that were just made reach the engine ahead of what follows."""
        await asyncio.sleep(0)

    def starts(self, *runs: Run) -> list[Run]:
        """These runs in the order in which the engine began them."""
        order = [item.call for item in self.journal if isinstance(item, CallStarted)]
        return sorted(runs, key=lambda run: order.index(run.call))

    async def order(self, *orders: EngineOrder) -> None:
        await self.engine.order(orders)

    def _head(self, seq: int | None) -> dict[str, Any]:
        return {
            "cause": 1,
            "epoch": self._epoch,
            "seq": next(self._seq) if seq is None else seq,
            "engine": self.engine.name,
        }

    def rank(self, program: str, key: float, *, seq: int | None = None) -> Rank:
        return Rank(program=program, key=key, **self._head(seq))

    def terms(self, **terms: Any) -> EngineTerms:
        return EngineTerms(**terms, **self._head(None))

    def release(self, program: str) -> Release:
        return Release(program=program, **self._head(None))

    def prefetch(self, program: str, by_s: float = FOREVER) -> Prefetch:
        return Prefetch(program=program, by_s=by_s, **self._head(None))

    def retain(
        self,
        program: str,
        tokens: int,
        value: float = 1.0,
        *,
        host: float = 0.0,
        lease: float = FOREVER,
        seq: int | None = None,
    ) -> Retain:
        """Make the first ``tokens`` of the program's context worth ``value`` on the device and ``host`` in
        host memory, the rest nothing."""
        worth = (Worth(until_s=FOREVER, value=value),)
        hosted = (Worth(until_s=FOREVER, value=host),)
        segment = Segment(start_tokens=0, end_tokens=tokens, device=worth, host=hosted)
        return Retain(program=program, segments=(segment,), lease_until_s=lease, **self._head(seq))


def held_of(reports: Sequence[StepReport], program: str) -> int:
    """Tokens on the device that the program holds by these reports."""
    return both_held_of(reports, program)[0]


def both_held_of(reports: Sequence[StepReport], program: str) -> tuple[int, int]:
    """The same, and tokens in host memory."""
    held = nothing = (0, 0)
    for report in reports:
        told = {entry.program: (entry.device_tokens, entry.host_tokens) for entry in report.held}
        held = told.get(program, nothing if report.snapshot else held)
    return held
