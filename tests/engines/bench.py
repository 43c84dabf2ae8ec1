"""A batching engine stepped in virtual time, over an executor that checks what it is given."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentsched.core.decisions import EngineOrder, Retain, Segment, Worth
from agentsched.core.events import CallFinished, CallStarted, StepReport
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import EngineOutput, GenerateRequest, Sampling, TokensOut
from agentsched.engines.execution import Row

BLOCK = 4
FOREVER = float("inf")


@dataclass
class Checked:
    """An executor whose KV is the tokens themselves: it reads every row's whole context back from
    the blocks, so a block that was overwritten, lost or never written is found at once."""

    num_blocks: int
    block_tokens: int = BLOCK
    vocabulary: int = 50
    max_context_tokens: int = 1 << 20
    memory: dict[tuple[int, int], int] = field(default_factory=dict)
    expected: dict[str, list[int]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    broken: bool = False

    def run(self, rows: Sequence[Row]) -> tuple[float, list[int | None]]:
        self.rows = list(rows)
        if self.broken:
            raise FloatingPointError("logits are not finite")
        written: dict[int, str] = {}
        for row in rows:
            for position, token in enumerate(row.tokens, row.start):
                block = row.blocks[position // BLOCK]
                assert written.setdefault(block, row.call) == row.call, "two rows write one block"
                self.memory[block, position % BLOCK] = token
        for row in rows:
            end = row.start + len(row.tokens)
            context = [self.memory[row.blocks[at // BLOCK], at % BLOCK] for at in range(end)]
            assert context == self.expected[row.call][:end], f"{row.call} reads what is not its own"
            assert (row.sampling is not None) == (end == len(self.expected[row.call]))
        return 1.0, [self._sample(row) for row in rows]

    def _sample(self, row: Row) -> int | None:
        if row.sampling is None:
            return None
        token = zlib.crc32(f"{row.call}/{row.step}".encode()) % self.vocabulary
        self.expected[row.call].append(token)
        return token


class Bench:
    """An engine, its clock, and all that came of it."""

    def __init__(self, num_blocks: int = 16, *, chunk_tokens: int = 64, max_running: int = 8) -> None:
        self.executor = Checked(num_blocks)
        self.engine = BatchingEngine(
            self.executor, "test", chunk_tokens=chunk_tokens, max_running=max_running
        )
        self.now = 0.0
        self.outputs: list[EngineOutput] = []
        self._seq = 0

    def submit(self, call: str, prompt: list[int], output: int = 1, program: str | None = None) -> None:
        request = GenerateRequest(
            call=call,
            program=program or call,
            prompt=prompt,
            sampling=Sampling(max_output_tokens=output),
        )
        self.engine.submit(request, self.now)
        self.executor.expected[call] = list(prompt)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            seconds, outputs = self.engine.step(self.now)
            self.now += seconds
            self.outputs += outputs
            self.engine.check_invariants()

    def drain(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"not done after {limit} steps")

    def run(self, call: str, prompt: list[int], output: int = 1, program: str | None = None) -> CallFinished:
        self.submit(call, prompt, output, program)
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

    def retain(self, program: str, value: float, tokens: int = 1000) -> None:
        segment = Segment(start_tokens=0, end_tokens=tokens, device=(Worth(until_s=FOREVER, value=value),))
        self.order(Retain, program=program, segments=(segment,), lease_until_s=FOREVER)


def prompt(number: int, tokens: int) -> list[int]:
    """A prompt whose first block differs from that of any other number."""
    return [number % 50, number // 50, *([7] * tokens)][:tokens]
