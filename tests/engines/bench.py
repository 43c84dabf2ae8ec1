"""A batching engine stepped in virtual time, over an executor that checks what it is given."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from agentsched.core.decisions import EngineOrder, Retain, Segment, Worth
from agentsched.core.events import CallFinished, CallStarted, StepReport
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import EngineOutput, GenerateRequest, Sampling, TokensOut
from agentsched.engines.execution import Row, RowFailed, Sampled
from agentsched.engines.host_tier import Move

BLOCK = 4
FOREVER = float("inf")


EMPTY: list[int] = []
NOT_FINITE = RowFailed("the model's logits are not finite")


@dataclass
class Checked:
    """An executor whose KV of a token is a hash of all tokens up to it, computed from the KV before it: a
    block that was overwritten, lost, never written or of another context is found at once. What it samples
    is read off that hash, so it depends on the context and on nothing else."""

    num_blocks: int
    block_tokens: int = BLOCK
    vocabulary: int = 50
    max_context_tokens: int = 1 << 20
    memory: dict[int, list[int]] = field(default_factory=dict)
    expected: dict[str, list[int]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    fault: Callable[[Sequence[Row]], Sequence[int]] | None = None
    """Breaks the step, or names the places of rows after which nothing can be sampled."""
    found: Exception | None = None
    """What was wrong with a batch: the engine takes it for a failure of the model, and goes on."""
    _hashes: dict[str, list[int]] = field(default_factory=dict)

    def run(self, rows: Sequence[Row]) -> tuple[float, list[Sampled]]:
        self.rows = list(rows)
        blamed = self.fault(rows) if self.fault else ()
        try:
            written: dict[int, str] = {}
            for row in rows:
                self._write(row, written)
            sampled = [self._sample(row) for row in rows]
        except Exception as error:
            self.found = error
            raise
        return 1.0, [NOT_FINITE if place in blamed else token for place, token in enumerate(sampled)]

    def _write(self, row: Row, written: dict[int, str]) -> None:
        before = row.start - 1
        hashed = self.memory[row.blocks[before // BLOCK]][before % BLOCK] if row.start else 0
        for position, token in enumerate(row.tokens, row.start):
            block = row.blocks[position // BLOCK]
            assert written.setdefault(block, row.call) == row.call, "two rows write one block"
            hashed = hash((hashed, token))
            if position % BLOCK == 0:
                self.memory[block] = [0] * BLOCK
            self.memory[block][position % BLOCK] = hashed

    def _sample(self, row: Row) -> int | None:
        end = row.start + len(row.tokens)
        expected, hashes = self.expected[row.call], self._hashes.setdefault(row.call, [])
        for token in expected[len(hashes) :]:
            hashes.append(hash((hashes[-1] if hashes else 0, token)))
        for at in range(0, end, BLOCK):
            there = self.memory.get(row.blocks[at // BLOCK], EMPTY)[: min(BLOCK, end - at)]
            assert there == hashes[at : min(at + BLOCK, end)], f"{row.call} reads what is not its own"
        assert (row.sampling is not None) == (end == len(expected))
        if row.sampling is None:
            return None
        expected.append(sampled_after(hashes[-1], self.vocabulary))
        return expected[-1]

    def begin(self, call: str, prompt: list[int]) -> None:
        self.expected[call] = list(prompt)
        self._hashes.pop(call, None)


def failing(rows: Sequence[Row]) -> Sequence[int]:
    """A fault that nobody can be blamed for."""
    raise FloatingPointError("logits are not finite")


def sampled_after(hashed: int, vocabulary: int) -> int:
    return zlib.crc32(str(hashed).encode()) % vocabulary


def answer(prompt: Sequence[int], count: int, vocabulary: int = 50) -> list[int]:
    """What the executor says to a prompt, whatever else there is."""
    hashed, said = 0, []
    for token in prompt:
        hashed = hash((hashed, token))
    for _ in range(count):
        said.append(sampled_after(hashed, vocabulary))
        hashed = hash((hashed, said[-1]))
    return said


class Shelf:
    """A host tier for ``Checked`` that takes as much time as it may, by chance: nothing is copied before it
    must be, and what has not come up yet is garbage."""

    tokens_per_s = 1e6
    takes_s: Sequence[float] = (0.0,)

    def __init__(self, executor: Checked, blocks: int, seed: int = 0) -> None:
        self.blocks = blocks
        self.slots: dict[int, list[int]] = {}
        self.demoted = self.brought = 0
        self._executor = executor
        self._random = Random(seed)
        self._saving: dict[int, int] = {}
        self._coming: list[Move] = []

    def demote(self, moves: Sequence[Move]) -> None:
        self.demoted += len(moves)
        for move in moves:
            for block in [block for block, slot in self._saving.items() if slot == move.target]:
                del self._saving[block]
            self._saving[move.source] = move.target

    def promote(self, moves: Sequence[Move], now: float) -> None:
        self._save([block for block, slot in self._saving.items() if slot in {m.source for m in moves}])
        self._save([move.target for move in moves])
        for move in moves:
            self._executor.memory[move.target] = ["on its way"] * BLOCK  # type: ignore[list-item]
        self._coming += moves

    def promoted(self, now: float) -> int:
        self._bring(self._random.randrange(3))
        return self.brought

    def make_way(self, blocks: Iterable[int]) -> None:
        self._save(list(blocks))

    def load_s(self, blocks: int, now: float) -> float:
        return self._random.choice(self.takes_s)

    def wait(self, now: float) -> float:
        self._bring(1)
        return 0.5

    def _save(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if block in self._saving:
                self.slots[self._saving.pop(block)] = list(self._executor.memory[block])

    def _bring(self, count: int) -> None:
        for move in self._coming[:count]:
            self._executor.memory[move.target] = list(self.slots[move.source])
            self.brought += 1
        del self._coming[:count]


class Bench:
    """An engine, its clock, and all that came of it."""

    def __init__(
        self,
        num_blocks: int = 16,
        *,
        host_blocks: int = 0,
        chunk_tokens: int = 64,
        max_running: int = 8,
        seed: int = 0,
    ) -> None:
        self.executor = Checked(num_blocks)
        self.shelf = Shelf(self.executor, host_blocks, seed)
        self.engine = BatchingEngine(
            self.executor,
            "test",
            host_tier=self.shelf if host_blocks else None,
            chunk_tokens=chunk_tokens,
            max_running=max_running,
        )
        self.now = 0.0
        self.outputs: list[EngineOutput] = []
        self._seq = 0

    def submit(
        self, call: str, prompt: list[int], output: int = 1, program: str | None = None, **more: Any
    ) -> None:
        request = GenerateRequest(
            call=call,
            program=program or call,
            prompt=prompt,
            sampling=Sampling(max_output_tokens=output),
            **more,
        )
        self.engine.submit(request, self.now)
        self.executor.begin(call, prompt)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            seconds, outputs = self.engine.step(self.now)
            self.now += seconds
            self.outputs += outputs
            if self.executor.found:
                raise self.executor.found
            self.engine.check_invariants()

    def drain(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"not done after {limit} steps")

    def run(
        self, call: str, prompt: list[int], output: int = 1, program: str | None = None, **more: Any
    ) -> CallFinished:
        self.submit(call, prompt, output, program, **more)
        self.drain()
        return self.end(call)

    def end(self, call: str) -> CallFinished:
        [end] = [item for item in self.outputs if isinstance(item, CallFinished) and item.call == call]
        return end

    def started(self) -> list[str]:
        return [item.call for item in self.outputs if isinstance(item, CallStarted)]

    def tokens(self, call: str) -> list[int]:
        parts = [item.tokens for item in self.outputs if isinstance(item, TokensOut) and item.call == call]
        return [token for part in parts for token in part]

    def report(self) -> StepReport:
        return self.engine.report(self.now)

    def order(self, kind: type[EngineOrder], **fields: Any) -> None:
        self._seq += 1
        self.engine.order([kind(cause=1, epoch=1, seq=self._seq, engine="e", **fields)], self.now)

    def retain(self, program: str, value: float, tokens: int = 1000, host: float = 0.0) -> None:
        segment = Segment(
            start_tokens=0,
            end_tokens=tokens,
            device=(Worth(until_s=FOREVER, value=value),),
            host=(Worth(until_s=FOREVER, value=host),),
        )
        self.order(Retain, program=program, segments=(segment,), lease_until_s=FOREVER)


def prompt(number: int, tokens: int) -> list[int]:
    """A prompt whose first block differs from that of any other number."""
    return [number % 50, number // 50, *([7] * tokens)][:tokens]
