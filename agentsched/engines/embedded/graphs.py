"""Decode steps of a few fixed sizes, each recorded once as a CUDA graph and replayed from then on.

A step of a large model launches hundreds of small kernels; launched one by one they take longer than some
steps compute. A graph reads its inputs from fixed tensors, so each size has its own, and a smaller batch is
padded with rows that write to a block which nobody owns. On a CPU the same is computed without recording,
which tests everything but the recording. Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentsched.engines.embedded.batch import Batch

_SMALL_SIZES = (1, 2, 4)
_SIZE_STEP = 8


@dataclass(frozen=True, slots=True)
class _Step:
    """``inputs`` are the tensors of the batch that change from step to step, ``host`` their pinned twins."""

    batch: Batch
    host: tuple[Tensor, ...]
    replay: Callable[[], object]
    logits: Tensor


class DecodeGraphs:
    """``forward`` computes logits of a batch; ``spare`` is the block that padding writes to."""

    def __init__(
        self,
        forward: Callable[[Batch], Tensor],
        *,
        spare: int,
        table_blocks: int,
        block_tokens: int,
        device: torch.device,
    ) -> None:
        self._forward, self._device = forward, device
        self._spare, self._table_blocks, self._block = spare, table_blocks, block_tokens
        self._steps: dict[int, _Step] = {}
        self._memory: Any = None

    def run(self, batch: Batch) -> Tensor:
        """Logits [rows, vocabulary] of a batch whose rows are one sampled token each. They hold until the
        next run. Raises ``ValueError`` for a row with more blocks than there are."""
        count, width = batch.tables_np.shape
        size = next((size for size in _SMALL_SIZES if size >= count), -(-count // _SIZE_STEP) * _SIZE_STEP)
        if width > self._table_blocks:
            raise ValueError(f"a row has {width} blocks, more than {self._table_blocks}")
        step = self._steps.get(size) or self._record(size)
        arrays = (batch.tokens_np, batch.positions_np, batch.slots_np, batch.starts_np, batch.tables_np)
        for twin, padding, array in zip(step.host, self._padding(size), arrays, strict=True):
            twin.copy_(torch.from_numpy(padding))
            part = twin[:count] if array.ndim == 1 else twin[:count, :width]
            part.copy_(torch.from_numpy(array))
        for twin, target in zip(step.host, _inputs(step.batch), strict=True):
            target.copy_(twin, non_blocking=True)
        step.replay()
        return step.logits[:count]

    def _padding(self, size: int) -> tuple[np.ndarray, ...]:
        """Tokens, positions, slots, starts and tables of rows that nobody asked for."""
        tokens, positions, starts = np.zeros((3, size), np.int64)
        slots = np.full(size, self._spare * self._block, np.int64)
        return tokens, positions, slots, starts, np.full((size, self._table_blocks), self._spare, np.int32)

    def _record(self, size: int) -> _Step:
        tokens, _, _, starts, tables = self._padding(size)
        ends = np.arange(1, size + 1)
        batch = Batch(tokens, starts, ends, tables, ends - 1, self._block, self._device)
        cuda = self._device.type == "cuda"
        inputs = _inputs(batch)
        host = tuple(torch.empty_like(tensor, device="cpu", pin_memory=cuda) for tensor in inputs)
        logits = self._forward(batch)
        if not cuda:
            step = _Step(batch, host, lambda: logits.copy_(self._forward(batch)), logits)
        else:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory):
                logits = self._forward(batch)
            self._memory = self._memory or graph.pool()
            step = _Step(batch, host, graph.replay, logits)
        self._steps[size] = step
        return step


def _inputs(batch: Batch) -> tuple[Tensor, ...]:
    return batch.tokens, batch.positions, batch.slots, batch.starts, batch.tables
