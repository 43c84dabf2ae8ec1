"""A step's rows as the arrays that the layers and the attention kernels read.

Built without a Python loop over tokens or blocks: in a decode step that time is lost to everyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from agentsched.engines.execution import Row

Ints = NDArray[np.int64]
Blocks = NDArray[np.int32]


class Batch:
    """Rows packed one after the other: row i has tokens [ends[i-1], ends[i]), ``starts[i]`` before them.

    ``tables`` [rows, blocks] are padded with what may be anything. ``last`` are the places of the tokens
    after which something is sampled.
    """

    def __init__(
        self, tokens: Ints, starts: Ints, ends: Ints, tables: Blocks, last: Ints, block: int
    ) -> None:
        self.block = block
        self.starts_np, self.ends_np, self.tables_np = starts, ends, tables
        counts = np.diff(ends, prepend=0)
        row_of = np.repeat(np.arange(len(ends)), counts)
        positions = np.arange(len(tokens)) + (starts - ends + counts)[row_of]
        slots = tables[row_of, positions // block].astype(np.int64) * block + positions % block
        self.tokens, self.positions, self.slots = map(torch.from_numpy, (tokens, positions, slots))
        self.starts, self.ends, self.tables = map(torch.from_numpy, (starts, ends, tables))
        self.last = torch.from_numpy(last)

    @cached_property
    def tail(self) -> Batch:
        """The sampled tokens as a batch of their own: all that the last layer must compute of its output."""
        if len(self.last) == len(self.tokens):
            return self
        last = self.last.numpy()
        rows = np.searchsorted(self.ends_np, last, side="right")
        count = len(rows)
        return Batch(
            self.tokens.numpy()[last],
            self.positions.numpy()[last],
            np.arange(1, count + 1),
            self.tables_np[rows],
            np.arange(count),
            self.block,
        )


class Batcher:
    """Makes batches. Remembers the rows' tables as arrays: they are long, and grow by a block now and then.

    Only blocks that were full before a step are remembered from it: the engine may swap one that the step
    fills for an equal one. A call that starts anew has a new list.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block = block_tokens
        self._full: dict[str, tuple[Sequence[int], Blocks]] = {}

    def batch(self, rows: Sequence[Row]) -> Batch:
        tokens = np.fromiter((token for row in rows for token in row.tokens), np.int64)
        ends = np.cumsum([len(row.tokens) for row in rows])
        starts = np.array([row.start for row in rows], np.int64)
        sampled = [row.sampling is not None for row in rows]
        tables = [self._table(row) for row in rows]
        self._full = {
            row.call: (row.blocks, table[: row.start // self._block])
            for row, table in zip(rows, tables, strict=True)
        }
        padded = np.zeros((len(rows), max(map(len, tables))), np.int32)
        for place, table in zip(padded, tables, strict=True):
            place[: len(table)] = table
        return Batch(tokens, starts, ends, padded, ends[sampled] - 1, self._block)

    def _table(self, row: Row) -> Blocks:
        need = -(-(row.start + len(row.tokens)) // self._block)
        blocks, full = self._full.get(row.call, (None, _NOTHING))
        if blocks is not row.blocks or len(full) > need:
            full = _NOTHING
        return np.concatenate((full, np.array(row.blocks[len(full) : need], np.int32)))


_NOTHING: Blocks = np.zeros(0, np.int32)
