"""Continuous batching over paged KV: the machine shared by all of our own engines.

``BatchingEngine`` is a ``StepEngine``: it queues calls, forms batches, owns the KV (``kv.py``) and
carries standing orders out. An ``Executor`` computes: a model on a device, or a cost model.

A step is formed in this order:

1. **Decode first**: every call past its prefill gets one token, so output never waits for prompts.
2. **One chunk of prefill tokens**, shared by rank, then arrival: calls whose prefill has begun and the
   head of the queue compete. Without orders all ranks are equal, so this is FCFS. The queue is
   strict: nobody overtakes a head that finds no room, else long prompts would starve.

Who gets room, and at whose expense:

* A call **starts** when its whole context, less what is cached, finds room among free blocks and
  idle blocks worth no more than ``EngineTerms.device_price`` (lowest value first, then LRU, tail
  first). Idle blocks above the price are retained: a new call waits for them. Beyond its own blocks
  a start leaves one block for every running call, or the free floor if that is more; otherwise the
  next decode step would preempt what has just begun.
* **Stuck**: nothing runs and the head of the queue still cannot start. Then the lease worth least is
  broken, and reported, until it can. So retention delays calls, but cannot block an engine.
* A running call that **grows** may take any idle block, lowest value first, above the price too: what
  has been computed for it is lost if it cannot go on, and running calls are what frees blocks.
* When nothing is idle, the running call of the highest rank (of these the one that came last) is
  **preempted**: it gives its blocks up, keeps its output, and goes back to its place in the queue; what
  is evicted meanwhile is computed again. The best call never is, so some call always ends.

A call's output never changes by any of this, only its time.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Sequence

from agentsched.core.decisions import EngineOrder, Prefetch
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
from agentsched.engines.kv import KvCache, block_keys

_log = logging.getLogger(__name__)


class BatchingEngine:
    """A ``StepEngine`` over any executor. ``chunk_tokens`` and ``max_running`` hold until
    ``EngineTerms`` come; an engine never runs more than its own ``max_running`` calls."""

    def __init__(
        self,
        executor: Executor,
        kind: str,
        *,
        chunk_tokens: int = 512,
        max_running: int = 64,
        recorded_outputs: bool = True,
        logprobs: bool = False,
        grammars: bool = False,
        name: str = "engine",
    ) -> None:
        if chunk_tokens < 1 or max_running < 1:
            raise ValueError(f"chunk_tokens and max_running must be >= 1, got {chunk_tokens}, {max_running}")
        self._capabilities = Capabilities(
            kind=kind,
            capacity_tokens=executor.num_blocks * executor.block_tokens,
            block_tokens=executor.block_tokens,
            max_context_tokens=executor.max_context_tokens,
            vocabulary=executor.vocabulary,
            max_running=max_running,
            ranks=True,
            retention=True,
            tail_eviction=True,
            recorded_outputs=recorded_outputs,
            logprobs=logprobs,
            grammars=grammars,
        )
        self._name = name
        self._chunk_tokens = chunk_tokens
        self._executor = executor
        self._orders = StandingOrders()
        self._kv = KvCache(executor.num_blocks, executor.block_tokens, self._orders)
        self._calls: dict[str, Call] = {}
        self._queue: list[Call] = []
        self._running: list[Call] = []
        self._unsent: list[EngineOutput] = []
        self._tally = Tally()
        self._arrivals = 0

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._queue or self._unsent)

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
            keys=block_keys(request.prompt, self._kv.block_tokens),
        )
        self._arrivals += 1
        self._calls[request.call] = call
        insort(self._queue, call, key=self._turn)

    def abort(self, call: str, now: float) -> None:
        known = self._calls.get(call)
        if known is None:
            return
        if known.table is None:
            self._queue.remove(known)
            del self._calls[call]
        else:
            self._leave(known, now)
        self._unsent.append(CallAborted(call=call, reason="aborted on request"))

    def order(self, orders: Sequence[EngineOrder], now: float) -> None:
        applied = [order for order in orders if self._orders.apply(order)]
        if not applied:
            return
        for order in applied:
            if isinstance(order, Prefetch):
                # There is no host tier here, so nothing is left to bring.
                self._orders.prefetched(order.program)
        self._queue.sort(key=self._turn)

    def _turn(self, call: Call) -> tuple[float, int]:
        return (self._orders.rank(call.request.program), call.arrival)

    # One step

    def step(self, now: float) -> tuple[float, list[EngineOutput]]:
        outputs, self._unsent = self._unsent, []
        batch = self._form_batch(now, outputs)
        if not batch:
            return 0.0, outputs
        rows = [self._row(call, count) for call, count in batch]
        try:
            seconds, sampled = self._executor.run(rows)
        except Exception as error:  # whatever breaks in a model must not end the other calls
            _log.exception("a batch of %d rows failed; its calls are aborted", len(rows))
            reason = f"the batch failed in the engine: {type(error).__name__}: {error}"
            for call, _ in batch:
                self._fail(call, now, reason, outputs)
            return 0.0, outputs
        self._tally.step_s += seconds
        for (call, count), result in zip(batch, sampled, strict=True):
            if isinstance(result, RowFailed):
                self._fail(call, now + seconds, result.reason, outputs)
            else:
                self._advance(call, count, result, now + seconds, outputs)
        return seconds, outputs

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

    def _form_batch(self, now: float, outputs: list[EngineOutput]) -> list[tuple[Call, int]]:
        """Which calls compute how many tokens."""
        preempted = len(self._tally.preempted)
        self._grow(now)
        batch = [(call, 1) for call in self._running if call.decoding]
        prefilling = sorted((call for call in self._running if not call.decoding), key=self._turn)
        prefilling.reverse()
        budget = self._orders.chunk_tokens(self._chunk_tokens)
        admitting = len(self._tally.preempted) == preempted
        while budget:
            head = self._queue[0] if admitting and self._queue else None
            if head and (not prefilling or self._turn(head) < self._turn(prefilling[-1])):
                admitting = self._start(head, now, outputs)
                if not admitting:
                    continue
                call = head
            elif prefilling:
                call = prefilling.pop()
            else:
                break
            count = min(budget, len(call.context) - call.computed)
            budget -= count
            batch.append((call, count))
        return batch

    def _grow(self, now: float) -> None:
        """Give decoding calls the block that their next token needs: evict, then preempt."""
        kv = self._kv
        growing = [
            call
            for call in self._running
            if call.decoding and call.table and len(call.context) > len(call.table.blocks) * kv.block_tokens
        ]
        if not growing:
            return
        for call in sorted(growing, key=self._turn):
            while call.table is not None:
                if not kv.free_blocks:
                    kv.evict(kv.victims(1, now, float("inf")))
                if kv.free_blocks:
                    kv.allocate(call.table, 1)
                    break
                self._preempt(max(self._running, key=self._turn), now)

    def _preempt(self, call: Call, now: float) -> None:
        assert call.table is not None
        self._kv.release(call.table, now)
        call.table, call.computed, call.decoding = None, 0, False
        self._running.remove(call)
        insort(self._queue, call, key=self._turn)
        self._tally.preempted.append(call.request.program)

    def _start(self, call: Call, now: float, outputs: list[EngineOutput]) -> bool:
        """Give the head of the queue its blocks, if there is room; the module says by what right."""
        kv = self._kv
        if len(self._running) >= self._orders.max_running(self._capabilities.max_running):
            return False
        # The last token is always computed: its logits give the next one.
        full = (len(call.context) - 1) // kv.block_tokens
        path = kv.match(call.keys, full, call.match)
        fresh = kv.blocks_for(len(call.context)) - len(path)
        floor = kv.blocks_for(self._orders.free_floor_tokens)
        headroom = max(len(self._running), floor) if self._running else 0
        if kv.available_beside(path) < fresh + headroom:
            return False
        kv.pin(path)
        if not self._clear(fresh, now):
            kv.unpin(path)
            return False
        self._queue.pop(0)
        self._running.append(call)
        call.table, call.match = kv.open(call.request.program, path), []
        kv.allocate(call.table, fresh)
        call.computed = len(path) * kv.block_tokens
        if not call.started:
            call.started, call.cached_tokens = True, call.computed
            outputs.append(CallStarted(call=call.request.call, cached_tokens=call.computed))
        return True

    def _clear(self, blocks: int, now: float) -> bool:
        """Evict for a new call until so many blocks are free; breaks leases only when stuck."""
        kv = self._kv
        price = self._orders.device_price
        while (short := blocks - kv.free_blocks) > 0:
            victims = kv.victims(short, now, price)
            if len(victims) == short:
                kv.evict(victims)
            elif self._running:
                return False
            else:
                program = self._orders.break_lease(now)
                assert program is not None, "nothing runs and nothing is retained, yet there is no room"
                self._tally.broken_leases.append(program)
        return True

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
            held_before = kv.fill(call.table, call.key(index, kv.block_tokens))
            if held_before and prefill:
                call.recomputed_tokens += kv.block_tokens
                self._tally.recomputed_tokens += kv.block_tokens
        if prefill:
            self._tally.prefilled_tokens += count
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
            self._tally.decoded_tokens += 1
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
        self._running.remove(call)
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
        tally, self._tally = self._tally, Tally()
        load = (len(self._running), len(self._queue))
        return tally.report(self._name, self._kv, *load, snapshot=snapshot)

    def check_invariants(self) -> None:
        kv = self._kv
        kv.check_invariants(call.table for call in self._running if call.table)
        assert len(self._calls) == len(self._queue) + len(self._running), "a call is lost or twice there"
        assert len(self._running) <= self._capabilities.max_running
        turns = [self._turn(call) for call in self._queue]
        assert turns == sorted(turns), "the queue is out of order"
        for call in self._queue:
            assert self._calls[call.request.call] is call
            assert call.table is None, f"{call.request.call} is queued and has blocks"
        for call in self._running:
            assert self._calls[call.request.call] is call
            assert call.table is not None, f"{call.request.call} runs without blocks"
            assert len(call.table.path) == call.computed // kv.block_tokens
            assert call.computed < len(call.context), f"{call.request.call} has nothing to compute"
            assert len(call.table.blocks) * kv.block_tokens >= call.computed
