"""Attention by torch alone: one sequence's new tokens over its whole context. On the CPU this is what is left
where our kernels are not (``native.py``), which is why it is fast too.

The new tokens see everything before them and, causally, each other. A mask for that costs 20 %
more than none. So the context is split: the past, in as many contiguous pieces as it lies in, needs
no mask; the new tokens among themselves are a causal square. Each piece yields its output and the
log-sum-exp of its scores, from which the exact whole is merged (as in flash decoding). Without a
mask the query heads that share a key head fold into one longer query, which also makes decode fast.

The fused kernel with a log-sum-exp is not public in torch. Where it is missing, and for bf16, whose
matrix products the CPU does 2.5 times faster than that kernel, plain products in tiles take over.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from agentsched.engines.embedded.batch import Batch, Blocks

_FUSED: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
# Scores of one tile should stay near the core: 128 queries by 8k keys in bf16 are 2 MB a head.
_TILE_QUERIES = 128
# From here on plain products in bf16 are faster than the fused kernel, where bf16 is fast.
_TILED_MIN_QUERIES = 32
_TILED_MIN_HEAD_DIM = 64
# More runs than this are gathered: a further piece costs a kernel call and a merge.
_MAX_RUNS = 4

Piece = tuple[Tensor, Tensor]
"""Keys and values of neighbouring positions, each [positions, kv heads, head_dim]."""


def attend_batch(q: Tensor, pool: Piece, batch: Batch) -> Tensor:
    """``attend`` for each row of a batch over its blocks: [tokens, heads, head_dim]."""
    keys, values = pool
    parts, begin = [], 0
    for start, end, table in zip(batch.starts_np, batch.ends_np, batch.tables_np, strict=True):
        n = int(end) - begin
        # A lone token reads itself from KV too: one piece less to merge.
        past = _pieces(keys, values, table, int(start) + (n == 1), batch.block)
        new = (keys[batch.slots[begin:end]], values[batch.slots[begin:end]]) if n > 1 else None
        parts.append(attend(q[begin:end], past, new))
        begin = int(end)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _pieces(keys: Tensor, values: Tensor, table: Blocks, length: int, block: int) -> list[Piece]:
    """The first ``length`` positions of a row, in order: runs of neighbouring blocks in place, or a copy."""
    if not length:
        return []
    used = table[: -(-length // block)]
    breaks = np.flatnonzero(np.diff(used) != 1) + 1
    if len(breaks) >= _MAX_RUNS:
        blocks = torch.from_numpy(used)

        def gather(pool: Tensor) -> Tensor:
            rows = pool.view(pool.shape[0] // block, -1).index_select(0, blocks)
            return rows.view(-1, *pool.shape[1:])[:length]

        return [(gather(keys), gather(values))]
    pieces = []
    for run in np.split(used, breaks):
        first, size = int(run[0]) * block, min(length, len(run) * block)
        pieces.append((keys[first : first + size], values[first : first + size]))
        length -= size
    return pieces


def attend(q: Tensor, past: Sequence[Piece], new: Piece | None) -> Tensor:
    """Output [n, heads, head_dim] of ``q`` [n, heads, head_dim]: all of ``past``, ``new`` causally.

    ``new`` holds the n positions of the queries themselves. A single query may count itself as past
    instead (``new`` None), which saves a merge; one of the two must hold something.
    """
    if _FUSED is None or _tiles_win(q):
        return attend_tiled(q, past, new)
    return attend_fused(q, past, new)


def _tiles_win(q: Tensor) -> bool:
    large = q.shape[0] >= _TILED_MIN_QUERIES and q.shape[2] >= _TILED_MIN_HEAD_DIM
    return large and q.dtype == torch.bfloat16 and fast_bf16()


@cache
def fast_bf16() -> bool:
    """Whether the CPU's matrix products in bf16 are faster than in fp32. Asked of a private operator;
    where that is not there we believe so."""
    asked: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asked is None or bool(asked())


def attend_fused(q: Tensor, past: Sequence[Piece], new: Piece | None) -> Tensor:
    """``attend`` by the fused kernel, a piece at a time."""
    n, heads, dim = q.shape
    kv_heads = (new or past[0])[0].shape[1]
    queries = q.transpose(0, 1)[None]
    merged: tuple[Tensor, Tensor] | None = None
    if new is not None:
        merged = _FUSED(queries, _heads_first(new[0]), _heads_first(new[1]), 0.0, True)
    folded = queries.reshape(1, kv_heads, heads // kv_heads * n, dim)
    for keys, values in past:
        out, lse = _FUSED(folded, _heads_first(keys), _heads_first(values))
        part = (out.reshape(1, heads, n, dim), lse.reshape(1, heads, n))
        merged = part if merged is None else _merge(merged, part)
    assert merged is not None, "queries without anything to attend to"
    return merged[0][0].transpose(0, 1)


def _merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exps of two pieces as if they had been one."""
    share = torch.sigmoid(b[1] - a[1])[..., None].to(a[0].dtype)
    return torch.lerp(a[0], b[0], share), torch.logaddexp(a[1], b[1])


def attend_tiled(q: Tensor, past: Sequence[Piece], new: Piece | None) -> Tensor:
    """``attend`` by matrix products, some queries at a time."""
    pieces = [*past, new] if new is not None else list(past)
    keys, values = pieces[0]
    if len(pieces) > 1:
        keys, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    n, heads, dim = q.shape
    context, kv_heads = keys.shape[:2]
    group, before = heads // kv_heads, context - n
    keys, values = keys.permute(1, 2, 0), values.transpose(0, 1)
    queries = (q * dim**-0.5).view(n, kv_heads, group, dim).permute(1, 2, 0, 3)
    out = q.new_empty(n, heads, dim)
    for start in range(0, n, _TILE_QUERIES):
        end = min(n, start + _TILE_QUERIES)
        seen = before + end
        tile = queries[:, :, start:end].reshape(kv_heads, group * (end - start), dim)
        scores = torch.bmm(tile, keys[..., :seen]).view(kv_heads, group, end - start, seen)
        ahead = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        scores[..., before + start :].masked_fill_(ahead, float("-inf"))
        weights = torch.softmax(scores, dim=-1).view(kv_heads, -1, seen)
        mixed = torch.bmm(weights, values[:, :seen]).view(kv_heads, group, end - start, dim)
        out[start:end] = mixed.permute(2, 0, 1, 3).reshape(end - start, heads, dim)
    return out


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None]
