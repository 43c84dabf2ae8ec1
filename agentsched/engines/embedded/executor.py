"""Computes batches of rows with the decoder over block-paged KV held in one tensor a layer.

The linear layers see all rows packed as one batch; attention goes row by row over that row's
blocks. Neighbouring blocks are read in place: only a context that lies scattered in many runs is
gathered into a copy first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agentsched.engines.embedded.attention import Piece, attend
from agentsched.engines.embedded.model import Llama
from agentsched.engines.embedded.sampling import Sampler
from agentsched.engines.embedded.spec import ModelSpec
from agentsched.engines.execution import Row, Sampled

# More runs than this are gathered: a further piece costs a kernel call and a merge a layer.
_MAX_RUNS = 4


class _Span:
    """The past of one row in KV: a few runs of slots read in place, or blocks to gather."""

    __slots__ = ("blocks", "length", "runs")

    def __init__(self, table: np.ndarray[tuple[int], np.dtype[np.int64]], length: int, block: int) -> None:
        used = table[: -(-length // block)]
        breaks = np.flatnonzero(np.diff(used) != 1) + 1
        self.length = length
        self.blocks: Tensor | None = None
        self.runs: list[tuple[int, int]] = []
        if length and len(breaks) >= _MAX_RUNS:
            self.blocks = torch.from_numpy(used)
        elif length:
            left = length
            for run in np.split(used, breaks):
                first, size = int(run[0]) * block, min(left, len(run) * block)
                self.runs.append((first, first + size))
                left -= size

    def pieces(self, keys: Tensor, values: Tensor, block: int) -> list[Piece]:
        """The past's keys and values in one layer's pools, in order."""
        if self.blocks is not None:
            return [(self._gather(keys, block), self._gather(values, block))]
        return [(keys[start:end], values[start:end]) for start, end in self.runs]

    def _gather(self, pool: Tensor, block: int) -> Tensor:
        assert self.blocks is not None
        rows = pool.view(pool.shape[0] // block, -1).index_select(0, self.blocks)
        return rows.view(-1, *pool.shape[1:])[: self.length]


class _Batch:
    """One step's rows, packed: tokens, their positions and KV slots, and each row's part of them."""

    def __init__(self, rows: Sequence[Row], block: int) -> None:
        self.spans: list[_Span] = []
        self.bounds: list[tuple[int, int]] = []
        tokens, positions, slots, end = [], [], [], 0
        for row in rows:
            n = len(row.tokens)
            table = np.asarray(row.blocks, dtype=np.int64)
            position = np.arange(row.start, row.start + n)
            tokens.append(np.asarray(row.tokens, dtype=np.int64))
            positions.append(position)
            slots.append(table[position // block] * block + position % block)
            # A lone token reads itself from KV too: one piece less to merge.
            self.spans.append(_Span(table, row.start + (n == 1), block))
            self.bounds.append((end, end + n))
            end += n
        self.tokens = torch.from_numpy(np.concatenate(tokens))
        self.positions = torch.from_numpy(np.concatenate(positions))
        self.slots = torch.from_numpy(np.concatenate(slots))


class TorchExecutor:
    """The model on the CPU. Not thread-safe; sets torch's thread count for the whole process."""

    def __init__(
        self,
        model: Llama,
        *,
        num_blocks: int,
        block_tokens: int = 16,
        threads: int = 1,
        sampler: Sampler | None = None,
    ) -> None:
        for name, amount in (
            ("num_blocks", num_blocks),
            ("block_tokens", block_tokens),
            ("threads", threads),
        ):
            if amount < 1:
                raise ValueError(f"{name} must be >= 1, got {amount}")
        torch.set_num_threads(threads)
        self.num_blocks, self.block_tokens = num_blocks, block_tokens
        self._model = model
        self.sampler = sampler or Sampler()
        shape = (num_blocks * block_tokens, model.spec.kv_heads, model.spec.head_dim)
        # One tensor a layer, written at once so that a step pays no page faults.
        self.pools = [
            (torch.zeros(shape, dtype=model.dtype), torch.zeros(shape, dtype=model.dtype))
            for _ in range(model.spec.layers)
        ]

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    @property
    def dtype(self) -> torch.dtype:
        return self._model.dtype

    @property
    def vocabulary(self) -> int:
        return self._model.spec.vocabulary

    @property
    def max_context_tokens(self) -> int:
        return self._model.spec.max_context_tokens

    def run(self, rows: Sequence[Row]) -> tuple[float, list[Sampled]]:
        """One step; see ``agentsched.engines.batching.Executor``. Seconds are wall time."""
        began = time.perf_counter()
        try:
            with torch.inference_mode():
                sampled = self._run(rows)
        except RuntimeError as error:
            if _short_of_memory(error):
                raise MemoryError(f"too little memory for a step of these rows: {error}") from error
            raise
        return time.perf_counter() - began, sampled

    def _run(self, rows: Sequence[Row]) -> list[Sampled]:
        if not rows:
            return []
        asked = [row for row in rows if row.sampling is not None]
        sampled = iter(self.sampler.sample(self.logits(rows), asked))
        return [None if row.sampling is None else next(sampled) for row in rows]

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Write the rows' KV; scores [rows with ``sampling``, vocabulary] after their last tokens."""
        batch = _Batch(rows, self.block_tokens)

        def attend_rows(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.pools[layer]
            keys.index_copy_(0, batch.slots, k)
            values.index_copy_(0, batch.slots, v)
            parts = []
            for span, (start, end) in zip(batch.spans, batch.bounds, strict=True):
                new = (k[start:end], v[start:end]) if end - start > 1 else None
                past = span.pieces(keys, values, self.block_tokens)
                parts.append(attend(q[start:end], past, new))
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        hidden = self._model.forward(batch.tokens, batch.positions, attend_rows)
        last = [end - 1 for row, (_, end) in zip(rows, batch.bounds, strict=True) if row.sampling is not None]
        return self._model.logits(hidden[last])


def _short_of_memory(error: RuntimeError) -> bool:
    # On the CPU torch has no class of its own for it.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
