"""The simulated engine, fast: the steps of ``batching.py``, taken many at a time.

It computes runs of equal steps (``runs.py``) at once, and cuts them at the next step's end when something
happens. So times are those of the step-by-step engine; what is simplified is stated:

* a context's blocks enter the prefix tree when its prefill ends, not one by one;
* decoding rows are given the blocks of a run at its end;
* while a call waits for room, the engine looks for it every ``RETRY_S``, not at every step;
* prefetch orders are not carried out (KV comes up when its call starts), and there is no affinity where
  ranks tie.

What is found in host memory is moved by one link, in order, before the call's prefill goes on.
"""

from __future__ import annotations

import heapq
from bisect import insort

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import CallAborted, CallFinished, CallStarted, FirstToken, StepReport
from agentsched.core.standing import StandingOrders
from agentsched.engines.calls import Tally
from agentsched.engines.cost import CostProfile, pairs
from agentsched.engines.runs import Call, Run
from agentsched.engines.runs_kv import Path, Pieces, RunCache
from agentsched.engines.schedule import LONGER

RETRY_S = 0.25

Output = CallStarted | FirstToken | CallFinished | CallAborted


class AnalyticEngine:
    """One simulated engine in virtual time. ``next_s`` is when it next has something to say (None:
    nothing to do); call ``advance(next_s)`` then. ``decode`` of rows is never bounded by ``chunk_tokens``."""

    def __init__(
        self,
        profile: CostProfile,
        capacity_tokens: int,
        *,
        name: str = "e0",
        block_tokens: int = 16,
        host_tokens: int = 0,
        chunk_tokens: int = 2048,
        max_running: int = 256,
    ) -> None:
        self.name, self.profile = name, profile
        self.capacity_tokens = capacity_tokens // block_tokens * block_tokens
        self.host_tokens = host_tokens // block_tokens * block_tokens
        self.host_tokens_per_s = profile.host_tokens_per_s
        self.max_running = max_running
        self.block_tokens = block_tokens
        self.next_s: float | None = None
        self._chunk_tokens = chunk_tokens
        self._orders = StandingOrders()
        self.kv = RunCache(
            capacity_tokens // block_tokens,
            block_tokens,
            self._orders,
            host_blocks=host_tokens // block_tokens,
        )
        self._queue: list[Call] = []
        self._running: list[Call] = []
        self._calls: dict[str, Call] = {}
        self._ends: list[tuple[int, int, Call]] = []
        self._steps = 0
        self._decoding = 0
        self._decoding_context = 0
        self._link_free_s = 0.0
        self._run: Run | None = None
        self._outputs: list[Output] = []
        self._tally = Tally()
        self._arrivals = 0

    # Calls and orders

    def submit(
        self, call: str, program: str, pieces: Pieces, prompt_tokens: int, output_tokens: int, now: float
    ) -> None:
        """Queue a call; ``pieces`` make up the prompt, and the output grows the last of them."""
        if self.kv.blocks_for(prompt_tokens + output_tokens) > self.kv.num_blocks:
            reason = f"{prompt_tokens} + {output_tokens} tokens are more than the KV has"
            self._outputs.append(CallAborted(call=call, reason=reason))
            self._interrupt(now)
            return
        known = Call(call, program, pieces, prompt_tokens, output_tokens, self._arrivals)
        self._arrivals += 1
        self._calls[call] = known
        insort(self._queue, known, key=self._turn)
        self._interrupt(now)

    def order(self, order: EngineOrder, now: float) -> None:
        if not self._orders.apply(order):
            return
        if self._queue:
            self._queue.sort(key=self._turn)
            self._interrupt(now)

    def forget(self, program: str) -> None:
        """The program has ended. Nothing depends on it; a real engine forgets owners by age."""
        self.kv.disown(program)

    def _turn(self, call: Call) -> tuple[float, int]:
        return (self._orders.rank(call.program), call.arrival)

    def _interrupt(self, now: float) -> None:
        if self._run is None:
            self.next_s = now
        else:
            self._run.cut(now)
            self.next_s = max(now, self._run.end_s())

    # Runs of steps

    def advance(self, now: float) -> list[Output]:
        """End the run that is over at ``now`` and begin the next; what came of it."""
        if self._run is not None:
            self._finish(self._run, now)
            self._run = None
        self._begin(now)
        outputs, self._outputs = self._outputs, []
        return outputs

    def _begin(self, now: float) -> None:
        batch, mixed = self._prefills(now)
        if not batch and not self._decoding:
            ready = [call.ready_s for call in self._running]
            self.next_s = min(ready) if ready else None
            return
        p = self.profile
        chunk = sum(count for _, count in batch)
        first_pairs = sum(pairs(call.computed, count) for call, count in batch)
        run = Run(now, 1, batch)
        run.a = (
            p.step_s
            + chunk * p.prefill_token_s
            + first_pairs * p.attention_s
            + self._decoding * p.decode_row_s
            + self._decoding_context * p.context_token_s
        )
        run.b = self._decoding * p.context_token_s
        steps = self._ends[0][0] - self._steps if self._decoding else 10**9
        if batch and not mixed:
            call, count = batch[0]
            steps = min(steps, (call.context_tokens - call.computed) // count)
            run.b += count * count * p.attention_s
        elif batch:
            steps = 1
        waits = [call.ready_s - now for call in self._running if call.ready_s > now]
        if self._queue:
            waits.append(RETRY_S)
        run.steps = max(1, steps)
        if waits:
            run.cut(now + min(waits))
        if self._decoding:
            self._fit(run, now)
        self._run = run
        self.next_s = run.end_s()

    def _fit(self, run: Run, now: float) -> None:
        """Cut the run to what there are blocks for; preempt if there is none even for one step."""
        kv = self.kv
        while self._growth(run.steps) > kv.free_blocks + kv.idle_blocks:
            if run.steps > 1:
                run.steps //= 2
                continue
            victim = max(self._running, key=self._turn)
            run.batch = [(call, count) for call, count in run.batch if call is not victim]
            self._preempt(victim, now)

    def _growth(self, steps: int) -> int:
        """Blocks that the decoding rows lack for so many steps."""
        return sum(max(0, self._lacking(call, steps)) for _, _, call in self._ends)

    def _lacking(self, call: Call, steps: int) -> int:
        tokens = call.context_tokens + self._steps - call.step0 + steps - 1
        return self.kv.blocks_for(tokens) - call.in_tree - call.private

    def _prefills(self, now: float) -> tuple[list[tuple[Call, int]], bool]:
        """Which calls prefill how many tokens in the next step; whether steps after it differ."""
        budget = whole = self._orders.chunk_tokens(self._chunk_tokens)
        waiting = [call for call in self._running if not call.decoding and call.ready_s <= now]
        waiting.sort(key=self._turn, reverse=True)
        batch: list[tuple[Call, int]] = []
        admitting = True
        while budget:
            head = self._queue[0] if admitting and self._queue else None
            if head and (not waiting or self._turn(head) < self._turn(waiting[-1])):
                admitting = self._start(head, now)
                waiting = [call for call in waiting if call.path is not None]
                if not admitting or head.ready_s > now:
                    continue
                call = head
            elif waiting:
                call = waiting.pop()
            else:
                break
            count = min(budget, call.context_tokens - call.computed)
            budget -= count
            batch.append((call, count))
        return batch, not (len(batch) == 1 and batch[0][1] == whole)

    def _start(self, call: Call, now: float) -> bool:
        kv = self.kv
        path = self._path(call)
        full = (call.context_tokens - 1) // kv.block_tokens
        device, host, once = kv.match(path, full)
        if host and not self._load_pays(device, host, now):
            host = 0
        fresh = kv.blocks_for(call.context_tokens) - device
        kv.pin(path)
        if not self._make_room(call, fresh, now):
            kv.unpin(path)
            return False
        self._queue.pop(0)
        self._running.append(call)
        kv.own(call.program, path)
        kv.reserve(call.program, fresh)
        call.path, call.in_tree, call.private = path, device, fresh
        host = kv.load(path, host) if host else 0
        if host:
            took_s = host * kv.block_tokens / self.profile.host_tokens_per_s
            self._link_free_s = call.ready_s = max(now, self._link_free_s) + took_s
        call.computed = (device + host) * kv.block_tokens
        again = max(0, once - device - host) * kv.block_tokens
        call.recomputed_tokens += again
        self._tally.recomputed_tokens += again
        if not call.started:
            call.started, call.cached_tokens = True, call.computed
            self._outputs.append(CallStarted(call=call.name, cached_tokens=call.computed))
        return True

    def _load_pays(self, device: int, host: int, now: float) -> bool:
        size = self.kv.block_tokens
        load_s = max(0.0, self._link_free_s - now) + host * size / self.profile.host_tokens_per_s
        recompute_s = self.profile.prefill_s(device * size, host * size)
        return load_s < recompute_s * (1 + len(self._running))

    def _make_room(self, call: Call, fresh: int, now: float) -> bool:
        """As in ``schedule.py``."""
        if self._has_room(fresh) and self._clear(fresh, now):
            return True
        rank, least = self._orders.rank(call.program), LONGER * fresh * self.kv.block_tokens
        for other in sorted(self._running, key=self._turn, reverse=True):
            longer = not other.decoding and other.context_tokens - other.computed >= least
            if longer and self._orders.rank(other.program) > rank and self._has_room(fresh, other.private, 1):
                self._preempt(other, now)
                return self._clear(fresh, now)
        return False

    def _has_room(self, fresh: int, more_blocks: int = 0, fewer_running: int = 0) -> bool:
        kv, running = self.kv, len(self._running) - fewer_running
        if running >= self._orders.max_running(self.max_running):
            return False
        floor = kv.blocks_for(self._orders.free_floor_tokens)
        headroom = max(running, floor) if running else 0
        return kv.free_blocks + kv.idle_blocks + more_blocks >= fresh + headroom

    def _clear(self, blocks: int, now: float) -> bool:
        """Evict for a new call until so many blocks are free; breaks leases only when stuck."""
        kv = self.kv
        price = self._orders.device_price
        while (short := blocks - kv.free_blocks) > 0:
            victims = kv.victims(short, now, price)
            if sum(count for _, count in victims) == short:
                for node, count in victims:
                    kv.evict(node, count, now)
            elif self._running:
                return False
            else:
                program = self._orders.break_lease(now)
                assert program is not None, "nothing runs and nothing is retained, yet there is no room"
                self._tally.broken_leases.append(program)
        return True

    def _path(self, call: Call) -> Path:
        """The nodes of all of the call's full blocks, output so far included."""
        path = self.kv.path(call.pieces)
        path.blocks[-1] += call.context_tokens // self.kv.block_tokens - sum(path.blocks)
        return path

    def _finish(self, run: Run, now: float) -> None:
        steps = run.steps
        self._tally.step_s += now - run.begin_s
        if self._decoding:
            self._grow(steps, now)
            self._tally.decoded_tokens += self._decoding * steps
            self._decoding_context += self._decoding * steps
        self._steps += steps
        for call, count in run.batch:
            call.computed += count * steps
            self._tally.prefilled_tokens += count * steps
            if call.computed == call.context_tokens:
                self._prefilled(call, now)
        while self._ends and self._ends[0][0] <= self._steps:
            call = self._ends[0][2]
            self._stop_decoding(call)
            self._leave(call, now)
            self._answered(call)

    def _grow(self, steps: int, now: float) -> None:
        kv = self.kv
        growing = [
            (call, lacking) for _, _, call in self._ends if (lacking := self._lacking(call, steps)) > 0
        ]
        short = sum(lacking for _, lacking in growing) - kv.free_blocks
        if short > 0:
            for node, count in kv.victims(short, now, float("inf")):
                kv.evict(node, count, now)
        for call, lacking in growing:
            kv.reserve(call.program, lacking)
            call.private += lacking

    def _prefilled(self, call: Call, now: float) -> None:
        """Its prefill is over, and with it comes the next token."""
        self._commit(call)
        call.emitted += 1
        self._tally.decoded_tokens += 1
        if call.emitted == 1:
            self._outputs.append(FirstToken(call=call.name))
        if call.emitted == call.output_tokens:
            self._leave(call, now)
            self._answered(call)
            return
        call.decoding, call.step0 = True, self._steps
        self._decoding += 1
        self._decoding_context += call.context_tokens
        heapq.heappush(self._ends, (self._steps + call.output_tokens - call.emitted, call.arrival, call))

    def _commit(self, call: Call) -> None:
        """What is computed is cached; blocks that somebody else had cached first become free."""
        assert call.path is not None
        full = call.computed // self.kv.block_tokens
        call.path.blocks[-1] += max(0, full - sum(call.path.blocks))
        mine = full - call.in_tree
        taken = self.kv.commit(call.program, call.path, full)
        self.kv.give_back(call.program, mine - taken)
        call.in_tree, call.private = full, call.private - mine

    def _stop_decoding(self, call: Call) -> None:
        self._ends = [entry for entry in self._ends if entry[2] is not call]
        heapq.heapify(self._ends)
        self._decoding -= 1
        more = self._steps - call.step0
        self._decoding_context -= call.context_tokens + more
        call.emitted += more
        call.computed = call.context_tokens - 1
        call.decoding = False

    def _release(self, call: Call, now: float) -> None:
        assert call.path is not None
        if call.decoding:
            self._stop_decoding(call)
        self._commit(call)
        self.kv.give_back(call.program, call.private)
        self.kv.touch(call.path, now)
        self.kv.unpin(call.path)
        self._running.remove(call)
        call.path, call.computed, call.in_tree, call.private = None, 0, 0, 0

    def _preempt(self, call: Call, now: float) -> None:
        self._release(call, now)
        insort(self._queue, call, key=self._turn)
        self._tally.preempted.append(call.program)

    def _leave(self, call: Call, now: float) -> None:
        self._release(call, now)
        del self._calls[call.name]

    def _answered(self, call: Call) -> None:
        self._outputs.append(
            CallFinished(
                call=call.name,
                prompt_tokens=call.prompt_tokens,
                cached_tokens=call.cached_tokens,
                output_tokens=call.emitted,
                recomputed_tokens=call.recomputed_tokens,
            )
        )

    # Reports

    def report(self, now: float, *, snapshot: bool = False) -> StepReport:
        self._orders.expire(now)
        tally, self._tally = self._tally, Tally()
        load = (len(self._running), len(self._queue))
        return tally.report(self.name, self.kv, *load, snapshot=snapshot)

    def check_invariants(self) -> None:
        self.kv.check_invariants()
        assert len(self._calls) == len(self._queue) + len(self._running), "a call is lost or twice there"
        assert self._decoding == len(self._ends) == sum(call.decoding for call in self._running)
        context = sum(call.context_tokens + self._steps - call.step0 for _, _, call in self._ends)
        assert self._decoding_context == context, "the rows' context is not what is counted"
