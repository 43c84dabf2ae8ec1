"""Every way to compute a layer's parts agrees with the plainest one, over ragged batches and odd shapes."""

from __future__ import annotations

import itertools
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from agentsched.engines.contract import Sampling
from agentsched.engines.embedded import native
from agentsched.engines.embedded.batch import Batch, Batcher
from agentsched.engines.embedded.executor import TorchExecutor
from agentsched.engines.embedded.model import Llama
from agentsched.engines.embedded.native import Kernels, NoKernels, find_kernels, load_library
from agentsched.engines.embedded.ops import KernelOps, Linear, Pool, TorchOps, ops_for
from agentsched.engines.embedded.spec import ModelSpec
from agentsched.engines.embedded.weights import random_tensors
from agentsched.engines.execution import Row

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    dim: int
    block: int


SHAPES = [
    Shape(6, 2, 16, 4),
    Shape(8, 4, 64, 16),
    Shape(3, 3, 80, 16),
    Shape(4, 1, 8, 5),
    Shape(6, 1, 10, 3),
    Shape(2, 1, 128, 16),
]
# (positions before, new tokens) of each row
RAGGED = [
    [(0, 1)],
    [(3, 1), (0, 1), (130, 1), (64, 1)],
    [(0, 5), (31, 1), (97, 33)],
    [(200, 70)],
    [(1, 1)] * 9,
]


def spec_of(shape: Shape, **changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 75,
        "num_hidden_layers": 2,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.dim,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    return ModelSpec.of(LlamaConfig(**fields | changes))


def batch_of(rows: list[tuple[int, int]], shape: Shape, seed: int) -> tuple[Batch, int]:
    """A batch over scattered blocks, and how many blocks there are."""
    source = np.random.default_rng(seed)
    starts = np.array([start for start, _ in rows])
    counts = np.array([count for _, count in rows])
    width = int(max(-(-(starts + counts) // shape.block)))
    blocks = len(rows) * width + 3
    tables = source.permutation(blocks)[: len(rows) * width].astype(np.int32).reshape(len(rows), width)
    ends = np.cumsum(counts)
    tokens = source.integers(0, 97, int(ends[-1]))
    return Batch(tokens, starts, ends, tables, ends - 1, shape.block), blocks


def plain_attention(q: Tensor, pool: Pool, batch: Batch) -> Tensor:
    """Row by row, softmax written out, in double."""
    parts, begin = [], 0
    for start, end, table in zip(batch.starts_np, batch.ends_np, batch.tables_np, strict=True):
        n = int(end) - begin
        positions = np.arange(int(start) + n)
        slots = table[positions // batch.block].astype(np.int64) * batch.block + positions % batch.block
        group = q.shape[1] // pool[0].shape[1]
        keys, values = (side[torch.from_numpy(slots)].double().repeat_interleave(group, 1) for side in pool)
        scores = torch.einsum("qhd,khd->hqk", q[begin:end].double(), keys) / q.shape[2] ** 0.5
        seen = torch.ones(n, len(positions), dtype=torch.bool).tril(int(start))
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", weights, values))
        begin = int(end)
    return torch.cat(parts)


@pytest.fixture(scope="session")
def wide_library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels with the vectors of AVX-512, which any machine computes, if slowly."""
    return load_library(tmp_path_factory.mktemp("kernels"), ["VECTOR_FLOATS=16"])


Maker = Callable[[ModelSpec, torch.dtype], TorchOps]


@pytest.fixture(params=["torch", "kernels", "two threads", "wide vectors"])
def make_ops(request: pytest.FixtureRequest) -> Maker:
    if request.param == "torch":
        return lambda spec, dtype: TorchOps(spec, dtype, CPU)
    if find_kernels(torch.float32) is None:
        pytest.skip("this machine compiles no kernels")
    threads = 2 if request.param == "two threads" else 1
    if request.param == "wide vectors":
        library = request.getfixturevalue("wide_library")
        return lambda spec, dtype: KernelOps(spec, dtype, Kernels(library, dtype), threads)
    return lambda spec, dtype: ops_for(spec, dtype, CPU, threads=threads)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_agrees_with_softmax_written_out(make_ops: Maker, shape: Shape, dtype: torch.dtype) -> None:
    ops = make_ops(spec_of(shape), dtype)
    for seed, rows in enumerate(RAGGED):
        batch, blocks = batch_of(rows, shape, seed)
        generator = torch.Generator().manual_seed(seed)
        sizes = (blocks * shape.block, shape.kv_heads, shape.dim)
        pool = tuple(torch.randn(sizes, generator=generator).to(dtype) for _ in "kv")
        width = shape.heads + 2 * shape.kv_heads
        qkv = torch.randn(len(batch.tokens_np), width, shape.dim, generator=generator).to(dtype)
        got = ops.attend(qkv, (pool[0], pool[1]), batch).view(-1, shape.heads, shape.dim)
        expected = plain_attention(qkv[:, : shape.heads], (pool[0], pool[1]), batch)
        torch.testing.assert_close(got.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("shape", [Shape(6, 2, 16, 4), Shape(2, 1, 10, 3)], ids=str)
def test_keys_are_normed_rotated_and_stored_alike(
    make_ops: Maker, shape: Shape, normed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    spec = spec_of(shape)
    batch, blocks = batch_of([(0, 40), (17, 1), (99, 3)], shape, 1)
    width = shape.heads + 2 * shape.kv_heads
    qkv = torch.randn(len(batch.tokens_np), width, shape.dim).to(dtype)
    weight = torch.rand(shape.heads + shape.kv_heads, shape.dim).to(dtype) if normed else None
    sides = []
    for ops in (TorchOps(spec, dtype, CPU), make_ops(spec, dtype)):
        pool = tuple(torch.zeros(blocks * shape.block, shape.kv_heads, shape.dim, dtype=dtype) for _ in "kv")
        mine = qkv.clone()
        ops.rotate_store(mine, weight, (pool[0], pool[1]), batch)
        sides.append((mine, *pool))
    for ours, plain in zip(sides[1], sides[0], strict=True):
        torch.testing.assert_close(ours, plain, atol=3 * TOLERANCE[dtype], rtol=3 * TOLERANCE[dtype])
    written = sides[1][1].flatten(1).any(1)
    assert written.count_nonzero() == len(batch.tokens_np)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 21, 48, 60])
def test_linear_norm_and_gate_agree_with_doubles(make_ops: Maker, rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    ops = make_ops(spec_of(SHAPES[0]), dtype)
    for inner, outer in itertools.product((16, 45, 512), (1, 50, 98)):
        x, weight = torch.randn(rows, inner).to(dtype), (torch.randn(outer, inner) / inner**0.5).to(dtype)
        bias = torch.randn(outer).to(dtype)
        for given in (None, bias):
            expected = x.double() @ weight.double().T + (0 if given is None else bias.double())
            got = ops.linear(x, Linear(weight, given))
            torch.testing.assert_close(got.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        add, scale = torch.randn(rows, inner).to(dtype), torch.rand(inner).to(dtype)
        hidden = x.clone()
        normed = ops.add_norm(hidden, add, scale)
        torch.testing.assert_close(hidden, x + add)
        exact = hidden.double()
        exact = exact * (exact.square().mean(-1, keepdim=True) + ops.spec.norm_eps).rsqrt() * scale.double()
        torch.testing.assert_close(normed.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        halves = torch.randn(rows, 2 * inner).to(dtype) * 20
        gate, up = halves.double().chunk(2, -1)
        exact = torch.nn.functional.silu(gate) * up
        torch.testing.assert_close(
            ops.gate(halves).double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


def test_what_is_no_number_stays_none(make_ops: Maker) -> None:
    """Else a broken weight would go unnoticed."""
    ops = make_ops(spec_of(SHAPES[0]), torch.float32)
    spoilt = torch.ones(2, 48)
    spoilt[1, 5] = float("nan")
    assert ops.linear(spoilt, Linear(torch.ones(9, 48), None))[1].isnan().all()
    assert ops.add_norm(spoilt.clone(), None, torch.ones(48))[1].isnan().all()
    assert ops.gate(spoilt)[1, 5].isnan()
    batch, blocks = batch_of([(0, 1), (0, 1)], SHAPES[0], 0)
    pool = tuple(torch.zeros(blocks * 4, 2, 16) for _ in "kv")
    qkv = torch.ones(2, 10, 16)
    qkv[1] = float("nan")
    out = ops.attend(qkv, (pool[0], pool[1]), batch)
    assert out[0].isfinite().all()
    # torch's own kernel makes zeros of queries that are none.
    assert out[1].isnan().all() or type(ops) is TorchOps


def row(call: str, start: int, tokens: list[int], blocks: list[int], sampled: bool = True) -> Row:
    sampling = Sampling(max_output_tokens=1) if sampled else None
    return Row(call=call, tokens=tokens, start=start, blocks=blocks, sampling=sampling, step=0)


def test_a_block_that_the_engine_swaps_after_it_filled_is_read_anew() -> None:
    batcher, blocks = Batcher(4), [7, 8]
    assert batcher.batch([row("a", 0, [1] * 4, blocks, False)]).tables_np.tolist() == [[7]]
    blocks[0] = 3
    assert batcher.batch([row("a", 4, [1], blocks)]).tables_np.tolist() == [[3, 8]]
    blocks[1] = 5
    assert batcher.batch([row("a", 5, [1], blocks)]).tables_np.tolist() == [[3, 5]]
    blocks.append(9)
    assert batcher.batch([row("a", 8, [1], blocks)]).tables_np.tolist() == [[3, 5, 9]]
    anew = [1, 2, 4]
    assert batcher.batch([row("a", 8, [1], anew)]).tables_np.tolist() == [anew]


def test_the_tail_of_a_batch_is_its_sampled_tokens() -> None:
    rows = [row("a", 6, [1, 2, 3], [0, 1, 2]), row("b", 0, [4, 5], [3], False), row("c", 9, [6], [4, 5, 6])]
    batch = Batcher(4).batch(rows)
    assert not batch.decodes
    tail = batch.tail
    assert tail.tokens.tolist() == [3, 6]
    assert tail.positions.tolist() == [8, 9]
    assert tail.slots.tolist() == [8, 25]
    assert tail.tail is tail


@pytest.mark.parametrize("graphs", [False, True])
def test_kernels_padded_steps_and_plain_torch_give_the_same_tokens(graphs: bool) -> None:
    spec = spec_of(Shape(6, 2, 16, 4))
    model = Llama(spec, random_tensors(spec, 3), torch.float32)
    source = random.Random(5)
    plain = TorchExecutor(model, num_blocks=128, block_tokens=4, kernels="torch", graphs=False)
    other = TorchExecutor(model, num_blocks=128, block_tokens=4, graphs=graphs)
    contexts = [[source.randrange(97) for _ in range(length)] for length in (1, 13, 29, 8, 40)]
    places = source.sample(range(128), 128)
    tables = [places[at * 20 : at * 20 + 20] for at in range(5)]
    for executor in (plain, other):
        rows = [
            row(str(i), 0, context[:-1], tables[i], False)
            for i, context in enumerate(contexts)
            if len(context) > 1
        ]
        executor.run(rows)
    for _ in range(6):
        steps = [row(str(i), len(c) - 1, c[-1:], tables[i]) for i, c in enumerate(contexts)]
        expected, got = plain.logits(steps).clone(), other.logits(steps)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        for context, token in zip(contexts, expected.argmax(-1).tolist(), strict=True):
            context.append(token)


def test_padding_refuses_a_table_that_does_not_fit() -> None:
    spec = spec_of(SHAPES[0])
    model = Llama(spec, random_tensors(spec, 3), torch.float32)
    executor = TorchExecutor(model, num_blocks=4, block_tokens=4, graphs=True)
    with pytest.raises(ValueError, match="more than 4"):
        executor.logits([row("a", 16, [1], [0, 1, 2, 3, 3])])


# Where there is no compiler


def test_without_a_compiler_torch_computes_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    find_kernels.cache_clear()
    native._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert type(ops_for(spec_of(SHAPES[0]), torch.float32, CPU)) is TorchOps
        [warning] = [record.getMessage() for record in caplog.records]
        assert "no-such-compiler not found" in warning
    finally:
        find_kernels.cache_clear()
        native._library.cache_clear()


def test_a_compiler_that_fails_is_told_with_its_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken-compiler"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'x.cpp:1: error: no vectors here' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(NoKernels, match="no vectors here"):
        load_library(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_library_is_told(tmp_path: Path) -> None:
    if find_kernels(torch.float32) is None:
        pytest.skip("this machine compiles no kernels")
    name = native._digest(native._compiler(), native._FLAGS)
    (tmp_path / f"{name}.so").write_bytes(b"no library")
    with pytest.raises(NoKernels, match="cannot be loaded"):
        load_library(tmp_path)


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernels must be one of"):
        ops_for(spec_of(SHAPES[0]), torch.float32, CPU, kernels="fast")


# Triton, by its interpreter: a process of its own, for it must be asked for before triton is imported

TRITON = """
import sys
import numpy as np, torch
from tests.engines.test_embedded_kernels import RAGGED, SHAPES, batch_of, plain_attention
from agentsched.engines.embedded.paged_triton import attend_paged
torch.set_num_threads(1)
for shape in SHAPES[0], SHAPES[2]:
    # The interpreter multiplies no bf16.
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float16, 5e-3)):
        for seed, rows in enumerate(RAGGED[1:3]):
            batch, blocks = batch_of(rows, shape, seed)
            sizes = (blocks * shape.block, shape.kv_heads, shape.dim)
            generator = torch.Generator().manual_seed(seed)
            pool = tuple(torch.randn(sizes, generator=generator).to(dtype) for _ in "kv")
            q = torch.randn(len(batch.tokens_np), shape.heads, shape.dim, generator=generator).to(dtype)
            got, expected = attend_paged(q, pool, batch), plain_attention(q, pool, batch)
            torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)
print("all agree")
"""


def run_interpreted(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True
    )


def test_triton_kernels_agree_with_softmax_written_out() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    done = run_interpreted("-c", TRITON)
    assert done.stdout == "all agree\n", done.stderr


def test_the_gpu_benchmark_takes_its_path_on_a_cpu_and_refuses_one_for_figures() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    module = ("-m", "agentsched.workloads.bench.engine_gpu")
    done = run_interpreted(*module, "--device", "cpu", "--tiny")
    for part in ("prefill_of_matmul", "32 tokens from host memory", "agentsched: tct_mean_s"):
        assert part in done.stdout, done.stderr
    if not torch.cuda.is_available():
        refused = run_interpreted(*module)
        assert refused.returncode == 2
        assert "no GPU" in refused.stderr
    assert run_interpreted(*module, "--device", "cpu").returncode == 2
