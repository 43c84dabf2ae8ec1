# mypy: disable-error-code="no-untyped-def"
"""Attention over paged KV on a GPU, in Triton. Not run on a GPU yet: tested by Triton's interpreter.

One kernel serves decode and prefill. A program takes a tile of one sequence's neighbouring tokens with all
query heads that share one KV head, and passes over a part of the context, the newest positions causally. A
lone token of each of few sequences would leave most of the device idle, so the context is split: each part
writes its output and the log-sum-exp of its scores, and a second kernel merges them (flash decoding).

Nothing depends on lengths but through memory, so that a CUDA graph of a decode step stays right as contexts
grow.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from agentsched.engines.embedded.batch import Batch
from agentsched.engines.embedded.ops import Pool, TorchOps

_ROWS = 64
"""Queries (tokens x heads of a group) in a tile of prefill."""

_POSITIONS = 64
"""Positions of KV that are scored at once."""

_PROGRAMS = 512
"""About so many programs keep a large device busy."""

_MAX_PARTS = 16


@triton.jit
def _soften(scores, causal, peak):
    """Weights of a tile, by how much earlier ones shrink, and the new maximum."""
    scores = tl.where(causal, scores, -1e30)
    top = tl.maximum(peak, tl.max(scores, 1))
    return tl.where(causal, tl.exp(scores - top[:, None]), 0.0), tl.exp(peak - top), top


@triton.jit  # type: ignore[untyped-decorator]
def _attend(
    q, keys, values, tables, starts, ends, tile_rows, tile_firsts, out, part_out, part_lse, scale,
    stride_q, stride_kv, table_width, part_stride,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, POSITIONS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    tile, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1) * GROUP
    row, first = tl.load(tile_rows + tile), tl.load(tile_firsts + tile)
    begin = tl.load(ends + row - 1, mask=row > 0, other=0)
    count, start = tl.load(ends + row) - begin, tl.load(starts + row)

    m, d = tl.arange(0, ROWS), tl.arange(0, WIDE)
    token, head = first + m // GROUP, kv_head * GROUP + m % GROUP
    at, valid = (begin + token)[:, None], (m < TOKENS * GROUP) & (token < count)
    inside = valid[:, None] & (d < DIM)[None, :]
    queries = tl.load(q + at * stride_q + head[:, None] * DIM + d[None, :], mask=inside, other=0.0)

    # What the last token of the tile sees, cut into parts of whole tiles of positions.
    seen = start + tl.minimum(first + TOKENS, count)
    each = tl.cdiv(tl.cdiv(seen, PARTS), POSITIONS) * POSITIONS
    low, high = part * each, tl.minimum((part + 1) * each, seen)
    peak, total = tl.full((ROWS,), -1e30, tl.float32), tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    for base in range(low, high, POSITIONS):
        position = base + tl.arange(0, POSITIONS)
        there = position < high
        block = tl.load(tables + row * table_width + position // BLOCK, mask=there, other=0).to(tl.int64)
        where = (block * BLOCK + position % BLOCK)[:, None] * stride_kv + kv_head * DIM + d[None, :]
        filled = there[:, None] & (d < DIM)[None, :]
        key = tl.load(keys + where, mask=filled, other=0.0)
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        causal = there[None, :] & (position[None, :] <= (start + token)[:, None])
        weights, shrink, peak = _soften(scores, causal, peak)
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(values + where, mask=filled, other=0.0)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    # A part may have nothing to see: it weighs nothing in the merge.
    result = mixed / tl.where(total > 0, total, 1.0)[:, None]
    if PARTS == 1:
        tl.store(
            out + (at * heads + head[:, None]) * DIM + d[None, :],
            result.to(out.dtype.element_ty),
            mask=inside,
        )
    else:
        place = part * part_stride + tile * heads + head
        lse = tl.where(total > 0, peak + tl.log(tl.where(total > 0, total, 1.0)), -1e30)
        tl.store(part_out + place[:, None] * DIM + d[None, :], result, mask=inside)
        tl.store(part_lse + place, lse, mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def _merge(
    part_out, part_lse, out, ends, tile_rows, part_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    token = tl.load(ends + tl.load(tile_rows + place // HEADS)) - 1
    part, d = tl.arange(0, PARTS), tl.arange(0, WIDE)
    lse = tl.load(part_lse + part * part_stride + place)
    weights = tl.exp(lse - tl.max(lse, 0))
    where = (part[:, None] * part_stride + place) * DIM + d[None, :]
    parts = tl.load(part_out + where, mask=(d < DIM)[None, :], other=0.0)
    result = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + (token * HEADS + place % HEADS) * DIM + d, result.to(out.dtype.element_ty), mask=d < DIM)


def attend_paged(q: Tensor, pool: Pool, batch: Batch) -> Tensor:
    """[tokens, heads, head_dim]: each of the queries [tokens, heads, head_dim] over its sequence so far."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    group = q.shape[1] // pool[0].shape[1]
    for tokens, alone in ((1, True), (max(1, _ROWS // group), False)):
        rows, firsts = batch.tiles(tokens, alone=alone)
        if len(rows):
            _launch(q, pool, batch, out, rows, firsts, tokens, split=alone)
    return out


def _launch(
    q: Tensor,
    pool: Pool,
    batch: Batch,
    out: Tensor,
    rows: Tensor,
    firsts: Tensor,
    tokens: int,
    *,
    split: bool,
) -> None:
    _, heads, dim = q.shape
    keys, values = pool
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    parts = _parts(len(rows) * kv_heads) if split else 1
    places = len(rows) * heads
    part_out = torch.empty(parts, places if split else 0, dim, dtype=torch.float, device=q.device)
    part_lse = torch.empty(parts, places if split else 0, dtype=torch.float, device=q.device)
    wide = max(16, triton.next_power_of_2(dim))
    _attend[(len(rows), kv_heads, parts)](
        q, keys, values, batch.tables, batch.starts, batch.ends, rows, firsts, out, part_out, part_lse,
        1 / math.sqrt(dim), q.stride(0), keys.stride(0), batch.tables.shape[1], places,
        GROUP=group, DIM=dim, WIDE=wide, BLOCK=batch.block, TOKENS=tokens,
        ROWS=max(16, triton.next_power_of_2(tokens * group)), POSITIONS=_POSITIONS, PARTS=parts,
    )  # fmt: skip
    if parts > 1:
        _merge[(places,)](
            part_out, part_lse, out, batch.ends, rows, places, HEADS=heads, DIM=dim, WIDE=wide, PARTS=parts
        )


def _parts(tiles: int) -> int:
    """A power of two, as the merge wants it."""
    wanted: int = triton.next_power_of_2(max(1, _PROGRAMS // tiles))
    return min(_MAX_PARTS, wanted)


class TritonOps(TorchOps):
    """A layer's parts by torch, attention by Triton."""

    def attend(self, qkv: Tensor, pool: Pool, batch: Batch) -> Tensor:
        return attend_paged(qkv[:, : self.spec.heads], pool, batch).flatten(1)
