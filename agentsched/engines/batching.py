"""Continuous batching over paged KV: the machine shared by all of our own engines.

``BatchingEngine`` is a ``StepEngine``. It has calls computed step by step and says what came of them;
``schedule.py`` forms the batches, ``kv.py`` keeps the books of KV, ``promotion.py`` deals with the host tier,
and all of them carry standing orders out. An ``Executor`` computes: a model on a device, or a cost model.

A call's output never changes by what its neighbours are or what is evicted, only its time.

What fails in a step costs as few calls as possible. An executor says which rows are at fault
(``RowFailed``), and one that finds too little memory has the largest row given up: the others are computed
again in the next step, from what was known before. After any other error nobody knows whose fault it was,
so all calls of the batch end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import CallAborted, CallFinished, CallStarted, FirstToken, StepReport
from agentsched.core.standing import StandingOrders
from agentsched.engines.calls import Call, Tally, check_request
from agentsched.engines.contract import (
    Capabilities,
    EngineOutput,
    GenerateRequest,
    RequestRefused,
    TokensOut,
)
from agentsched.engines.execution import Executor, Row, RowFailed, ScoredToken
from agentsched.engines.host_tier import HostTier
from agentsched.engines.kv import KvCache
from agentsched.engines.prefix import Keys
from agentsched.engines.promotion import Promotion
from agentsched.engines.schedule import Schedule

_log = logging.getLogger(__name__)


class BatchingEngine:
    """A ``StepEngine`` over any executor. ``chunk_tokens`` and ``max_running`` hold until
    ``EngineTerms`` come; an engine never runs more than its own ``max_running`` calls. ``host_tier``
    moves the executor's blocks, which are all its own."""

    def __init__(
        self,
        executor: Executor,
        kind: str,
        *,
        host_tier: HostTier | None = None,
        chunk_tokens: int = 512,
        max_running: int = 64,
        recorded_outputs: bool = True,
        logprobs: bool = False,
        grammars: bool = False,
        name: str = "engine",
    ) -> None:
        if chunk_tokens < 1 or max_running < 1:
            raise ValueError(f"chunk_tokens and max_running must be >= 1, got {chunk_tokens}, {max_running}")
        host_blocks = host_tier.blocks if host_tier else 0
        self._capabilities = Capabilities(
            kind=kind,
            capacity_tokens=executor.num_blocks * executor.block_tokens,
            block_tokens=executor.block_tokens,
            max_context_tokens=executor.max_context_tokens,
            vocabulary=executor.vocabulary,
            host_tier=host_tier is not None,
            host_capacity_tokens=host_blocks * executor.block_tokens,
            host_tokens_per_s=host_tier.tokens_per_s if host_tier else 0.0,
            max_running=max_running,
            ranks=True,
            retention=True,
            tail_eviction=True,
            recorded_outputs=recorded_outputs,
            logprobs=logprobs,
            grammars=grammars,
        )
        self._name = name
        self._executor = executor
        self._orders = StandingOrders()
        self._kv = KvCache(executor.num_blocks, executor.block_tokens, self._orders, host_blocks=host_blocks)
        self._promotion = Promotion(self._kv, host_tier)
        self._schedule = Schedule(
            self._kv, self._orders, self._promotion, chunk_tokens=chunk_tokens, max_running=max_running
        )
        self._calls: dict[str, Call] = {}
        self._unsent: list[EngineOutput] = []
        self._arrivals = 0

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def has_work(self) -> bool:
        return bool(self._calls or self._unsent or self._promotion.on_the_way)

    @property
    def tally(self) -> Tally:
        """What happened since the last report."""
        return self._schedule.tally

    # Calls and orders

    def submit(self, request: GenerateRequest, now: float) -> None:
        if request.call in self._calls:
            raise RequestRefused(f"call {request.call!r} is in use already")
        output_limit = check_request(request, self._capabilities)
        call = Call(
            request=request,
            arrival=self._arrivals,
            output_limit=output_limit,
            context=list(request.prompt),
            keys=Keys(self._kv.block_tokens, request.salt, request.shared_prefix_tokens),
        )
        self._arrivals += 1
        self._calls[request.call] = call
        self._schedule.add(call)

    def abort(self, call: str, now: float) -> None:
        known = self._calls.get(call)
        if known is None:
            return
        if known.table is None:
            self._schedule.queue.remove(known)
            del self._calls[call]
        else:
            self._leave(known, now)
        self._unsent.append(CallAborted(call=call, reason="aborted on request"))

    def order(self, orders: Sequence[EngineOrder], now: float) -> None:
        applied = [order for order in orders if self._orders.apply(order)]
        if applied:
            self._schedule.reorder()
            # An engine that is idle takes no step to do it in.
            self._prefetch(now)

    def _prefetch(self, now: float) -> None:
        self._promotion.settle(now)
        self._schedule.prefetch(now)
        self._promotion.carry_out(now)

    # One step

    def step(self, now: float) -> tuple[float, list[EngineOutput]]:
        outputs, self._unsent = self._unsent, []
        self._prefetch(now)
        batch, began = self._schedule.batch(now)
        self._promotion.carry_out(now)
        outputs += [CallStarted(call=call.request.call, cached_tokens=call.computed) for call in began]
        if not batch:
            return (self._promotion.wait(now) if self._promotion.on_the_way else 0.0), outputs
        rows = [self._row(call, count) for call, count in batch]
        self._promotion.make_way(self._written(row) for row in rows)
        try:
            seconds, sampled = self._executor.run(rows)
        except Exception as error:  # whatever breaks in a model must not end the other calls
            failed = _at_fault(error, rows)
            _log.error(
                "a batch of %d rows failed; aborted: %d of its calls", len(rows), len(failed), exc_info=error
            )
            reason = f"the batch failed in the engine: {type(error).__name__}: {error}"
            for place in failed:
                self._fail(batch[place][0], now, reason, outputs)
            return 0.0, outputs
        self.tally.step_s += seconds
        self._promotion.observe(sum(n for call, n in batch if not call.decoding), seconds)
        for (call, count), result in zip(batch, sampled, strict=True):
            if isinstance(result, RowFailed):
                self._fail(call, now + seconds, result.reason, outputs)
            else:
                self._advance(call, count, result, now + seconds, outputs)
        return seconds, outputs

    def _written(self, row: Row) -> Sequence[int]:
        size = self._kv.block_tokens
        return row.blocks[row.start // size : (row.start + len(row.tokens) - 1) // size + 1]

    def _row(self, call: Call, count: int) -> Row:
        assert call.table is not None
        end = call.computed + count
        return Row(
            call=call.request.call,
            tokens=call.context[call.computed : end],
            start=call.computed,
            blocks=call.table.blocks,
            sampling=call.request.sampling if end == len(call.context) else None,
            step=call.emitted,
            context=call.context,
        )

    # What comes of it

    def _advance(
        self,
        call: Call,
        count: int,
        sampled: int | ScoredToken | None,
        then: float,
        outputs: list[EngineOutput],
    ) -> None:
        assert call.table is not None
        kv, prefill = self._kv, not call.decoding
        call.computed += count
        for index in range(len(call.table.path), call.computed // kv.block_tokens):
            let_go = kv.fill(call.table, call.keys.of(call.context)[index])
            call.arrives = max(call.arrives, call.table.path[-1].arrives)
            if prefill and (let_go or index < call.found):
                call.recomputed_tokens += kv.block_tokens
                self.tally.recomputed_tokens += kv.block_tokens
        if prefill:
            self.tally.prefilled_tokens += count
        if call.computed == len(call.context):
            self._emit(call, sampled, then, outputs)

    def _emit(
        self, call: Call, sampled: int | ScoredToken | None, then: float, outputs: list[EngineOutput]
    ) -> None:
        name = call.request.call
        logprobs = [sampled.logprobs] if isinstance(sampled, ScoredToken) else None
        token = call.next_token(sampled.token if isinstance(sampled, ScoredToken) else sampled)
        if token is not None:
            call.context.append(token)
            call.emitted += 1
            call.decoding = True
            self.tally.decoded_tokens += 1
            if call.emitted == 1:
                outputs.append(FirstToken(call=name))
            outputs.append(TokensOut(call=name, tokens=[token], logprobs=logprobs))
        if token is None or call.emitted == call.output_limit:
            self._leave(call, then)
            outputs.append(
                CallFinished(
                    call=name,
                    prompt_tokens=len(call.request.prompt),
                    cached_tokens=call.cached_tokens,
                    output_tokens=call.emitted,
                    recomputed_tokens=call.recomputed_tokens,
                )
            )

    def _leave(self, call: Call, now: float) -> None:
        assert call.table is not None
        self._kv.release(call.table, now)
        self._forget(call)

    def _forget(self, call: Call) -> None:
        self._schedule.running.remove(call)
        del self._calls[call.request.call]

    def _fail(self, call: Call, now: float, reason: str, outputs: list[EngineOutput]) -> None:
        """What a failed call read or wrote may be spoilt (NaN spreads), so it is no cache either."""
        assert call.table is not None
        self._kv.discard(call.table, now)
        self._forget(call)
        outputs.append(CallAborted(call=call.request.call, reason=reason))

    # Reports

    def report(self, now: float, *, snapshot: bool = False) -> StepReport:
        self._orders.expire(now)
        schedule = self._schedule
        tally, schedule.tally = schedule.tally, Tally()
        load = (len(schedule.running), len(schedule.queue))
        return tally.report(self._name, self._kv, *load, snapshot=snapshot)

    def check_invariants(self) -> None:
        kv, queue, running = self._kv, self._schedule.queue, self._schedule.running
        kv.check_invariants([call.table for call in running if call.table])
        assert len(self._calls) == len(queue) + len(running), "a call is lost or twice there"
        assert len(running) <= self._capabilities.max_running
        turns = [self._schedule.turn(call) for call in queue]
        assert turns == sorted(turns), "the queue is out of order"
        for call in queue:
            assert self._calls[call.request.call] is call
            assert call.table is None, f"{call.request.call} is queued and has blocks"
        for call in running:
            assert self._calls[call.request.call] is call
            assert call.table is not None, f"{call.request.call} runs without blocks"
            assert len(call.table.path) == call.computed // kv.block_tokens
            assert call.computed < len(call.context), f"{call.request.call} has nothing to compute"
            assert len(call.table.blocks) * kv.block_tokens >= call.computed


def _at_fault(error: Exception, rows: Sequence[Row]) -> Sequence[int]:
    """The places of the rows whose calls have to end."""
    if isinstance(error, MemoryError):
        return [max(range(len(rows)), key=lambda place: (len(rows[place].tokens), rows[place].start))]
    return range(len(rows))
