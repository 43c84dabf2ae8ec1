"""What SGLang's scheduler does for us in each turn of its loop: take orders, sort its queue, report.

Hooks, installed when the cache is made: before and behind the reading of requests, once a turn; behind the
sorting of the queue, before a batch is chosen, and behind the counting of how many calls may join it; behind
a batch, to count it; and where several ranks receive requests. None waits for anything. Nothing is preempted.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from agentsched.core.events import StepReport
from agentsched.engines import wire
from agentsched.engines.contract import Capabilities
from agentsched.engines.process import ReportPace
from agentsched.engines.sglang.cache import RetainingCache, program_of
from agentsched.engines.sglang.channel import Channel
from agentsched.engines.sglang.place import socket_path
from agentsched.engines.sglang.ranks import Ranks

ENGINE = "sglang"
"""The daemon gives it another name."""

STUCK_TURNS = 3
EXPIRE_S = 10.0


def begin(cache: RetainingCache, *, port: int, rank: int, ranks: int) -> None:
    """Hook the scheduler's loop, and on the first rank open the channel."""
    channel = _open(cache, port) if rank == 0 else None
    cache.now_s = time.monotonic()
    cache.loop = loop = Loop(cache, channel, Ranks(ranks, channel.poll if channel else None))
    scheduler, policy = "sglang.srt.managers.scheduler.Scheduler", "sglang.srt.managers.schedule_policy"
    HookRegistry.register(f"{scheduler}.process_input_requests", _before_input, HookType.BEFORE)
    HookRegistry.register(f"{scheduler}.process_input_requests", _after_input, HookType.AFTER)
    HookRegistry.register(f"{scheduler}.process_batch_result", _after_batch, HookType.AFTER)
    HookRegistry.register(f"{scheduler}.get_num_allocatable_reqs", _after_counting, HookType.AFTER)
    HookRegistry.register(f"{policy}.SchedulePolicy.calc_priority", _after_sorting, HookType.AFTER)
    if ranks > 1 and rank == 0:
        receiver = "sglang.srt.managers.scheduler_components.request_receiver.SchedulerRequestReceiver"
        HookRegistry.register(f"{receiver}.recv_requests", loop.around_receiving, HookType.AROUND)
    HookRegistry.apply_hooks()


def _open(cache: RetainingCache, port: int) -> Channel:
    capacity_tokens = int(cache.token_to_kv_pool_allocator.size)
    capabilities = Capabilities(
        kind=ENGINE,
        capacity_tokens=capacity_tokens,
        block_tokens=int(cache.page_size),
        max_context_tokens=capacity_tokens,
        vocabulary=0,
        ranks=True,
        retention=True,
        tail_eviction=True,
    )
    life = f"{os.getpid()}-{uuid.uuid4().hex}"
    return Channel(socket_path(port), wire.hello(capabilities, life=life))


def _before_input(scheduler: Any, requests: list[Any], *arguments: Any, **options: Any) -> None:
    if isinstance(scheduler.tree_cache, RetainingCache):
        scheduler.tree_cache.loop.begun(requests)


def _after_input(_: Any, scheduler: Any, *arguments: Any, **options: Any) -> None:
    if isinstance(scheduler.tree_cache, RetainingCache):
        scheduler.tree_cache.loop.turn(scheduler)


def _after_batch(_: Any, scheduler: Any, batch: Any, *arguments: Any, **options: Any) -> None:
    if isinstance(scheduler.tree_cache, RetainingCache):
        scheduler.tree_cache.loop.computed(batch)


def _after_sorting(_: Any, policy: Any, waiting: list[Any], *arguments: Any, **options: Any) -> None:
    """By rank; those of one rank stay as SGLang has put them."""
    cache = policy.tree_cache
    if len(waiting) > 1 and isinstance(cache, RetainingCache):
        orders = cache.retained.orders
        waiting.sort(key=lambda request: orders.rank(program_of(request) or ""))


def _after_counting(room: int, scheduler: Any, running: int, *arguments: Any, **options: Any) -> int:
    """No more than are ordered to run at once."""
    cache = scheduler.tree_cache
    if not isinstance(cache, RetainingCache):
        return room
    return min(room, cache.retained.orders.max_running(running + room) - running)


class Loop:
    """One scheduler's turns. ``channel``: to the daemon, on the first rank."""

    def __init__(self, cache: RetainingCache, channel: Channel | None, ranks: Ranks) -> None:
        self._cache = cache
        self._channel = channel
        self._ranks = ranks
        self._pace = ReportPace(int(cache.token_to_kv_pool_allocator.size))
        self._stuck_turns = 0
        self._expire_s = 0.0
        self._told: tuple[int, int] | None = None
        self._turn_s = 0.0
        self._prefilled_tokens = self._decoded_tokens = 0
        self._step_s = 0.0

    def around_receiving(self, receive: Any, receiver: Any, local_reqs: Any = None) -> list[Any]:
        """On the first rank of several, in place of SGLang's ``recv_requests``."""
        return self._ranks.around_receiving(
            lambda local: receive(receiver, local_reqs=local),
            local_reqs,
            standing=self._cache.retained.orders.retained(),
        )

    def begun(self, requests: list[Any]) -> None:
        """A turn begins, with requests that are about to be read: take its time and its orders."""
        self._turn_s = time.monotonic()
        for told in self._ranks.begun(requests):
            self._cache.now_s = told.now_s
            if told.orders:
                self._pace.ordered(told.orders)
                self._cache.retained.apply(told.orders)

    def computed(self, batch: Any) -> None:
        """A batch was computed in this turn, or has come back in it. The first rank counts for all."""
        if self._channel is None:
            return
        self._step_s += time.monotonic() - self._turn_s
        if batch.forward_mode.is_extend():
            self._prefilled_tokens += int(batch.extend_num_tokens or 0)
            # Not strict: a miscount is no reason to end the server.
            for request, start, count in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=False):
                # With the end of a prompt comes the first token.
                self._decoded_tokens += start + count >= len(request.origin_input_ids)
                if program := program_of(request):
                    self._cache.retained.computed(program, request.origin_input_ids, start, count)
        else:
            self._decoded_tokens += len(batch.reqs)

    def turn(self, scheduler: Any) -> None:
        """Takes some microseconds if there is nothing to do."""
        now, retained = self._cache.now_s, self._cache.retained
        if now >= self._expire_s:
            self._expire_s = now + EXPIRE_S
            retained.expire(now)
            if self._channel is None:
                retained.take_changes(all_held=False)  # nobody asks this rank
        self._unstick(scheduler, now)
        if self._channel is not None:
            self._tell(scheduler, self._channel)

    def _tell(self, scheduler: Any, channel: Channel) -> None:
        """Whatever the daemon is to hear now."""
        if channel.new:
            channel.greet(self._report(scheduler, snapshot=True))
        elif channel.linked and self._pace.due(self._turn_s):
            report = self._report(scheduler)
            self._pace.reported(report, self._turn_s)
            told = (report.running, report.queued)
            news = report.step_s or report.held or report.evicted_tokens or report.broken_leases
            if news or told != self._told:
                self._told = told
                channel.report(report)

    def _unstick(self, scheduler: Any, now: float) -> None:
        """Calls wait, nothing runs, and what is held back is in their way: end the lease worth least."""
        batches = (scheduler.running_batch, scheduler.last_batch)
        runs = any(batch is not None and not batch.is_empty() for batch in batches) or scheduler.chunked_req
        if runs or not scheduler.waiting_queue or scheduler._engine_paused:
            self._stuck_turns = 0
            return
        self._stuck_turns += 1
        if self._stuck_turns > STUCK_TURNS and self._cache.held_back_tokens():
            self._cache.retained.break_lease(now)

    def _report(self, scheduler: Any, *, snapshot: bool = False) -> StepReport:
        changes = self._cache.retained.take_changes(all_held=snapshot)
        report = StepReport(
            engine=ENGINE,
            free_tokens=int(self._cache.token_to_kv_pool_allocator.available_size()),
            evictable_tokens=max(0, self._cache.evictable_size()),
            held=changes.held,
            snapshot=snapshot,
            evicted_tokens=changes.evicted_tokens,
            prefilled_tokens=self._prefilled_tokens,
            decoded_tokens=self._decoded_tokens,
            recomputed_tokens=changes.recomputed_tokens,
            step_s=self._step_s,
            running=len(scheduler.running_batch.reqs),
            queued=len(scheduler.waiting_queue),
            broken_leases=changes.broken_leases,
        )
        self._prefilled_tokens = self._decoded_tokens = 0
        self._step_s = 0.0
        return report
