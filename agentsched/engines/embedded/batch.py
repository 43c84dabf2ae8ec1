"""A step's rows as the arrays that the layers and the attention kernels read.

Built without a Python loop over tokens or blocks: in a decode step that time is lost to everyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from agentsched.engines.execution import Row

_CPU = torch.device("cpu")

Ints = NDArray[np.int64]
Blocks = NDArray[np.int32]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on its way to the device: the host does not wait for it."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Batch:
    """Rows packed one after the other: row i has tokens [ends[i-1], ends[i]), ``starts[i]`` before them.

    ``tables`` [rows, blocks] are padded with what may be anything. ``last`` are the places of the tokens
    after which something is sampled. What is named ``_np`` stays with the host.
    """

    def __init__(
        self,
        tokens: Ints,
        starts: Ints,
        ends: Ints,
        tables: Blocks,
        last: Ints,
        block: int,
        device: torch.device = _CPU,
    ) -> None:
        self.block, self.device = block, device
        self.tokens_np, self.starts_np, self.ends_np = tokens, starts, ends
        self.tables_np, self.last_np = tables, last
        self.counts_np = np.diff(ends, prepend=0)
        row_of = np.repeat(np.arange(len(ends)), self.counts_np)
        self.positions_np = np.arange(len(tokens)) + (starts - ends + self.counts_np)[row_of]
        of_block = tables[row_of, self.positions_np // block].astype(np.int64)
        self.slots_np = of_block * block + self.positions_np % block
        self.tokens, self.positions = self._sent(tokens), self._sent(self.positions_np)
        self.slots, self.starts = self._sent(self.slots_np), self._sent(starts)
        self.ends, self.tables, self.last = self._sent(ends), self._sent(tables), self._sent(last)
        self._tiles: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    @property
    def decodes(self) -> bool:
        """Whether every row is one token that is sampled."""
        return len(self.last_np) == len(self.tokens_np)

    def tiles(self, tokens: int, *, alone: bool) -> tuple[Tensor, Tensor]:
        """Rows of one token (``alone``), or the others cut into tiles of so many tokens: each tile's row,
        and its first token within the row."""
        if (tokens, alone) not in self._tiles:
            tiles = np.where((self.counts_np == 1) == alone, -(-self.counts_np // tokens), 0)
            rows = np.repeat(np.arange(len(tiles)), tiles)
            firsts = (np.arange(len(rows)) - (np.cumsum(tiles) - tiles)[rows]) * tokens
            self._tiles[tokens, alone] = self._sent(rows), self._sent(firsts)
        return self._tiles[tokens, alone]

    @cached_property
    def tail(self) -> Batch:
        """The sampled tokens as a batch of their own: all that the last layer must compute of its output."""
        if self.decodes:
            return self
        rows = np.searchsorted(self.ends_np, self.last_np, side="right")
        count = len(rows)
        return Batch(
            self.tokens_np[self.last_np],
            self.positions_np[self.last_np],
            np.arange(1, count + 1),
            self.tables_np[rows],
            np.arange(count),
            self.block,
            self.device,
        )

    def _sent(self, array: Ints | Blocks) -> Tensor:
        return sent(torch.from_numpy(array), self.device)


class Batcher:
    """Makes batches. Remembers the rows' tables as arrays: they are long, and grow by a block now and then.

    Only blocks that were full before a step are remembered from it: the engine may swap one that the step
    fills for an equal one. A call that starts anew has a new list.
    """

    def __init__(self, block_tokens: int, device: torch.device = _CPU) -> None:
        self._block, self._device = block_tokens, device
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
        return Batch(tokens, starts, ends, padded, ends[sampled] - 1, self._block, self._device)

    def _table(self, row: Row) -> Blocks:
        need = -(-(row.start + len(row.tokens)) // self._block)
        blocks, full = self._full.get(row.call, (None, _NOTHING))
        if blocks is not row.blocks or len(full) > need:
            full = _NOTHING
        return np.concatenate((full, np.array(row.blocks[len(full) : need], np.int32)))


_NOTHING: Blocks = np.zeros(0, np.int32)
