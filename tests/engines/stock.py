"""A stock engine in few lines, written apart from ours: FCFS, LRU over a prefix cache, nothing else.

The cache is a dictionary from whole prefixes to blocks, searched from end to end at each question: slow, and
hard to get wrong. Rules: decode first, then one chunk of prefill by arrival; a head of the queue that finds
no room is not overtaken, and leaves a block for every running call; the last to come is preempted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.engines.bench import BLOCK, answer

Prefix = tuple[int, ...]


@dataclass
class Cached:
    index: int
    used: float = 0.0
    users: int = 0


@dataclass
class StockCall:
    name: str
    arrival: int
    context: list[int]
    left: int
    answers: list[int]
    computed: int = 0
    decoding: bool = False
    started: bool = False
    shared: list[Prefix] = field(default_factory=list)
    own: list[int] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        return len(self.shared) + len(self.own)


class Stock:
    """``step`` answers (call, "start", cached tokens), (call, "token", token) and (call, "end", 0)."""

    def __init__(self, num_blocks: int, chunk_tokens: int, max_running: int) -> None:
        self.free = list(range(num_blocks))
        self.cache: dict[Prefix, Cached] = {}
        self.queue: list[StockCall] = []
        self.running: list[StockCall] = []
        self.chunk_tokens, self.max_running = chunk_tokens, max_running
        self.arrivals = 0

    def submit(self, name: str, prompt: list[int], output: int) -> None:
        said = answer(prompt, output)
        self.queue.append(StockCall(name, self.arrivals, list(prompt), output, said))
        self.arrivals += 1

    @property
    def idle(self) -> int:
        return sum(entry.users == 0 for entry in self.cache.values())

    def step(self, now: float) -> list[tuple[str, str, int]]:
        told: list[tuple[str, str, int]] = []
        preempted = self._grow(now)
        batch = [(call, 1) for call in self.running if call.decoding]
        budget, may_start = self.chunk_tokens, not preempted
        waiting = sorted((c for c in self.running if not c.decoding), key=lambda c: c.arrival)
        while budget and (waiting or (may_start and self.queue)):
            if may_start and self.queue and not (waiting and waiting[0].arrival < self.queue[0].arrival):
                call = self.queue[0]
                if not self._start(call):
                    may_start = False
                    continue
                if not call.started:
                    call.started = True
                    told.append((call.name, "start", call.computed))
            elif waiting:
                call = waiting.pop(0)
            count = min(budget, len(call.context) - call.computed)
            budget -= count
            batch.append((call, count))
        then = now + (1.0 if batch else 0.0)
        for call, count in batch:
            self._advance(call, count, then, told)
        return told

    def abort(self, name: str, now: float) -> None:
        for call in [call for call in self.queue if call.name == name]:
            self.queue.remove(call)
        for call in [call for call in self.running if call.name == name]:
            self._release(call, now)

    def _grow(self, now: float) -> bool:
        preempted = False
        for call in sorted(self.running, key=lambda c: c.arrival):
            while call in self.running and call.decoding and len(call.context) > call.blocks * BLOCK:
                if not self.free and self.idle:
                    self._evict()
                if self.free:
                    call.own.append(self._take())
                    continue
                last = max(self.running, key=lambda c: c.arrival)
                self._release(last, now)
                last.computed, last.decoding, last.shared, last.own = 0, False, [], []
                self.queue.append(last)
                self.queue.sort(key=lambda c: c.arrival)
                preempted = True
        return preempted

    def _take(self) -> int:
        index = min(self.free)
        self.free.remove(index)
        return index

    def _evict(self) -> None:
        """The longest unused of those that no longer prefix extends; of one context its tail."""
        leaves = [
            (entry.used, -len(prefix), entry.index, prefix)
            for prefix, entry in self.cache.items()
            if not entry.users
            and not any(other[:-BLOCK] == prefix for other in self.cache if len(other) > len(prefix))
        ]
        prefix = min(leaves)[3]
        self.free.append(self.cache.pop(prefix).index)

    def _start(self, call: StockCall) -> bool:
        found: list[Prefix] = []
        for end in range(BLOCK, len(call.context), BLOCK):
            if (prefix := tuple(call.context[:end])) not in self.cache:
                break
            found.append(prefix)
        need = -(-len(call.context) // BLOCK) - len(found)
        spare = self.idle - sum(self.cache[prefix].users == 0 for prefix in found)
        room = len(self.free) + spare
        if len(self.running) >= self.max_running or room < need + len(self.running):
            return False
        for prefix in found:
            self.cache[prefix].users += 1
        while len(self.free) < need:
            self._evict()
        call.shared, call.own = found, [self._take() for _ in range(need)]
        call.computed = len(found) * BLOCK
        self.queue.remove(call)
        self.running.append(call)
        return True

    def _advance(self, call: StockCall, count: int, then: float, told: list[tuple[str, str, int]]) -> None:
        call.computed += count
        while len(call.shared) < call.computed // BLOCK:
            prefix = tuple(call.context[: (len(call.shared) + 1) * BLOCK])
            index = call.own.pop(0)
            if prefix in self.cache:
                self.free.append(index)
            else:
                self.cache[prefix] = Cached(index)
            self.cache[prefix].users += 1
            call.shared.append(prefix)
        if call.computed < len(call.context):
            return
        token = call.answers[len(call.answers) - call.left]
        call.left -= 1
        call.context.append(token)
        call.decoding = True
        told.append((call.name, "token", token))
        if not call.left:
            self._release(call, then)
            told.append((call.name, "end", 0))

    def _release(self, call: StockCall, then: float) -> None:
        self.running.remove(call)
        self.free += call.own
        for prefix in call.shared:
            self.cache[prefix].used = then
            self.cache[prefix].users -= 1
