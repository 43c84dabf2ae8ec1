"""The embedded engine's host tier: copies blocks between the executor's pools and host memory.

Host memory is one row a block (all layers, keys and values), so on a GPU a block crosses the link as one
copy. A demotion is put off until there is time for it, or until its block or its slot is used again: a
call that starts on a full device would else have its whole context's worth of blocks saved in one step.

**On a GPU** (not run on one so far) host memory is pinned, and a stream of its own copies beside the
computing. Down: blocks are gathered into a buffer in the computing stream, which may overwrite them from
then on. Up: rows are scattered into blocks that nobody reads before an event says that they have come.

**On the CPU** the tier is more of the same memory; it is there for what it means, not for what it holds.
Copies are made within steps, at most ``STEP_BYTES`` in each. A thread was tried: on two cores a matrix
product beside it ran at a third of its speed, for both want the memory. Plain slices, a block at a time,
are three to six times as fast as torch's indexing (4 GB/s, scattered, on one core of an EPYC).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from agentsched.engines.host_tier import Move

STEP_BYTES = 4 << 20
"""Of demotions and promotions in a step on the CPU, which takes longer by them: 1 ms or so."""
GPU_STEP_BYTES = 32 << 20
"""Of demotions in a step on a GPU; what comes up does so beside the computing."""

Pools = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer, each [slots, kv heads, head_dim]."""


class _Copies(Protocol):
    """Copies blocks on one kind of device."""

    def save(self, moves: Sequence[Move]) -> None:
        """From the device. What is computed or brought up after it may overwrite the blocks."""
        ...

    def bring(self, moves: Sequence[Move]) -> None:
        """To the device, after all that was saved or brought before."""
        ...

    def brought(self) -> int:
        """How many have come up, of all there ever were."""
        ...

    def wait(self) -> None:
        """Return when more have come up."""
        ...


class HostMemory:
    """A ``HostTier`` over the executor's pools. Not thread-safe.

    Raises ``ValueError`` where there is not so much memory.
    """

    def __init__(self, pools: Pools, *, blocks: int, block_tokens: int) -> None:
        flat = [pool.view(pool.shape[0] // block_tokens, -1) for pair in pools for pool in pair]
        self.blocks = blocks
        row_bytes = sum(pool.shape[1] * pool.itemsize for pool in flat)
        self._paced = not flat[0].is_cuda
        self._step_blocks = max(1, (STEP_BYTES if self._paced else GPU_STEP_BYTES) // row_bytes)
        try:
            self._copies: _Copies = _CudaCopies(flat, blocks) if flat[0].is_cuda else _CpuCopies(flat, blocks)
        except RuntimeError as error:
            gigabytes = blocks * row_bytes / 1e9
            raise ValueError(
                f"host memory for {blocks * block_tokens:,} tokens of KV takes {gigabytes:.1f} GB "
                f"and cannot be had; ask for less ({error})"
            ) from error
        self._saving: dict[int, int] = {}
        self._saving_to: dict[int, int] = {}
        self._bringing: deque[Move] = deque()
        self._warm_ups = 0
        self.tokens_per_s = self._measured(min(blocks, len(flat[0]), self._step_blocks)) * block_tokens

    def demote(self, moves: Sequence[Move]) -> None:
        for block, slot in moves:
            self._forget(self._saving_to.get(slot))
            self._saving[block], self._saving_to[slot] = slot, block

    def promote(self, moves: Sequence[Move], now: float) -> None:
        needed = [self._saving_to.get(move.source) for move in moves]
        self._save([*(block for block in needed if block is not None), *(move.target for move in moves)])
        self._bringing += moves

    def promoted(self, now: float) -> int:
        self._work()
        return self._copies.brought() - self._warm_ups

    def make_way(self, blocks: Iterable[int]) -> None:
        if self._saving:
            self._save(blocks)

    def load_s(self, blocks: int, now: float) -> float:
        return (len(self._bringing) + blocks) / self._blocks_per_s

    def wait(self, now: float) -> float:
        began_s = time.perf_counter()
        self._work()
        self._copies.wait()
        return time.perf_counter() - began_s

    def _work(self) -> None:
        """A step's share of what is to be done, what calls may be waiting for first."""
        left = self._step_blocks
        if self._bringing:
            count = min(left, len(self._bringing)) if self._paced else len(self._bringing)
            moves = [self._bringing.popleft() for _ in range(count)]
            self._copies.bring(moves)
            left -= len(moves)
        self._save(list(self._saving)[: max(0, left)])

    def _save(self, blocks: Iterable[int]) -> None:
        """Those of the blocks that are still to be saved."""
        moves = [Move(block, self._saving[block]) for block in dict.fromkeys(blocks) if block in self._saving]
        if moves:
            self._copies.save(moves)
        for move in moves:
            self._forget(move.source)

    def _forget(self, block: int | None) -> None:
        if block is not None:
            del self._saving_to[self._saving.pop(block)]

    def _measured(self, blocks: int) -> float:
        """Blocks a second that come up; nothing is in them yet."""
        self._blocks_per_s = 0.0
        moves = [Move(number, number) for number in range(blocks)]
        for _ in range(3):
            began_s = time.perf_counter()
            self._copies.bring(moves)
            self._warm_ups += blocks
            while self._copies.brought() < self._warm_ups:
                self._copies.wait()
            self._blocks_per_s = max(self._blocks_per_s, blocks / (time.perf_counter() - began_s))
        return self._blocks_per_s


class _CpuCopies:
    def __init__(self, pools: Sequence[Tensor], blocks: int) -> None:
        # numpy knows no bfloat16; bytes are all that counts here.
        self._pools = [pool.view(torch.uint8).numpy() for pool in pools]
        sizes = [pool.shape[1] for pool in self._pools]
        self._rows = torch.zeros((blocks, len(sizes), sizes[0]), dtype=torch.uint8).numpy()
        self._brought = 0

    def save(self, moves: Sequence[Move]) -> None:
        for place, pool in enumerate(self._pools):
            rows = self._rows[:, place]
            for block, slot in moves:
                rows[slot] = pool[block]

    def bring(self, moves: Sequence[Move]) -> None:
        for place, pool in enumerate(self._pools):
            rows = self._rows[:, place]
            for slot, block in moves:
                pool[block] = rows[slot]
        self._brought += len(moves)

    def brought(self) -> int:
        return self._brought

    def wait(self) -> None:
        return None


class _CudaCopies:
    def __init__(self, pools: Sequence[Tensor], blocks: int) -> None:
        self._pools = pools
        shape = (blocks, len(pools), pools[0].shape[1])
        self._rows = torch.zeros(shape, dtype=pools[0].dtype, pin_memory=True)
        self._stream: Any = torch.cuda.Stream(pools[0].device)  # type: ignore[no-untyped-call]
        self._begun = self._brought = 0
        self._events: deque[tuple[int, Any]] = deque()

    def _buffer(self, moves: Sequence[Move]) -> Tensor:
        shape = (len(moves), *self._rows.shape[1:])
        return torch.empty(shape, dtype=self._rows.dtype, device=self._pools[0].device)

    def _places(self, blocks: Iterable[int]) -> Tensor:
        return torch.tensor(list(blocks)).pin_memory().to(self._pools[0].device, non_blocking=True)

    @torch.inference_mode()
    def save(self, moves: Sequence[Move]) -> None:
        buffer, places = self._buffer(moves), self._places(move.source for move in moves)
        for place, pool in enumerate(self._pools):
            torch.index_select(pool, 0, places, out=buffer[:, place])
        # The allocator must not give the buffer to the computing stream while the other one reads it.
        buffer.record_stream(self._stream)
        self._stream.wait_stream(torch.cuda.current_stream(buffer.device))
        with torch.cuda.stream(self._stream):
            for number, move in enumerate(moves):
                self._rows[move.target].copy_(buffer[number], non_blocking=True)

    @torch.inference_mode()
    def bring(self, moves: Sequence[Move]) -> None:
        # What was computed before may still read the blocks that are about to be written.
        self._stream.wait_stream(torch.cuda.current_stream(self._pools[0].device))
        with torch.cuda.stream(self._stream):
            buffer, places = self._buffer(moves), self._places(move.target for move in moves)
            for number, move in enumerate(moves):
                buffer[number].copy_(self._rows[move.source], non_blocking=True)
            for place, pool in enumerate(self._pools):
                pool.index_copy_(0, places, buffer[:, place])
        self._begun += len(moves)
        self._events.append((self._begun, self._stream.record_event()))

    def brought(self) -> int:
        while self._events and self._events[0][1].query():
            self._brought = self._events.popleft()[0]
        return self._brought

    def wait(self) -> None:
        if self._events:
            self._events[0][1].synchronize()
