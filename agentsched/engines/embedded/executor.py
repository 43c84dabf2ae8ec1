"""Computes batches of rows with the decoder over block-paged KV held in one tensor a layer."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from agentsched.engines.embedded.batch import Batch, Batcher
from agentsched.engines.embedded.graphs import DecodeGraphs
from agentsched.engines.embedded.model import Llama
from agentsched.engines.embedded.ops import ops_for
from agentsched.engines.embedded.pages import zeros
from agentsched.engines.embedded.sampling import Sampler
from agentsched.engines.embedded.spec import ModelSpec
from agentsched.engines.execution import Row, Sampled


class TorchExecutor:
    """The model on its device. Not thread-safe; sets torch's thread count for the whole process."""

    def __init__(
        self,
        model: Llama,
        *,
        num_blocks: int,
        block_tokens: int = 16,
        threads: int = 1,
        sampler: Sampler | None = None,
        kernels: str = "auto",
        graphs: bool | None = None,
    ) -> None:
        """``kernels`` as in ``ops.py``; ``graphs`` for decode steps, by default on a GPU."""
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
        self.ops = ops_for(model.spec, model.dtype, model.device, threads=threads, kernels=kernels)
        self._batcher = Batcher(block_tokens, model.device)
        graphs = model.device.type == "cuda" if graphs is None else graphs
        self._graphs: DecodeGraphs | None = None
        if graphs:
            # One block more, that nobody owns: what pads a decode step writes there.
            shape = (shape[0] + block_tokens, *shape[1:])
            self._graphs = DecodeGraphs(
                self._forward,
                spare=num_blocks,
                table_blocks=min(num_blocks, -(-model.spec.max_context_tokens // block_tokens)),
                block_tokens=block_tokens,
                device=model.device,
            )
        # A tensor a layer: what writes one big tensor may copy all of it.
        self.pools = [
            (zeros(shape, model.dtype, model.device), zeros(shape, model.dtype, model.device))
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
        """One step; see ``agentsched.engines.execution.Executor``. Seconds are wall time."""
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
        logits = self.logits(rows)
        if not asked and logits.is_cuda:
            # Nobody waits for a token, yet the step's seconds are to be told.
            torch.cuda.current_stream(logits.device).synchronize()
        sampled = iter(self.sampler.sample(logits, asked))
        return [None if row.sampling is None else next(sampled) for row in rows]

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Write the rows' KV; scores [rows with ``sampling``, vocabulary] after their last tokens."""
        batch = self._batcher.batch(rows)
        if self._graphs is not None and batch.decodes:
            return self._graphs.run(batch)
        return self._forward(batch)

    def _forward(self, batch: Batch) -> Tensor:
        return self._model.logits(self._model.forward(batch, self.pools, self.ops), self.ops)


def _short_of_memory(error: RuntimeError) -> bool:
    # On the CPU torch has no class of its own for it.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
