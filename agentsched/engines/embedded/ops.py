"""The parts of a layer, for whatever computes them: torch alone, or our kernels on the CPU.

``TorchOps`` says what each part means, on any device; the others compute the same, faster. Whoever
holds a model and KV chooses one by ``ops_for``.

A step of 8 decoding sequences through 8 layers of torch's own operations spent 1.8 ms in dispatch and small
operations beside matrix products and attention; through the kernels it is five calls a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agentsched.engines.embedded.attention import attend_batch, fast_bf16
from agentsched.engines.embedded.batch import Batch
from agentsched.engines.embedded.native import Kernels, find_kernels
from agentsched.engines.embedded.spec import ModelSpec

Pool = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [slots, kv heads, head_dim]."""


@dataclass(frozen=True, slots=True)
class Linear:
    weight: Tensor
    bias: Tensor | None


class TorchOps:
    """A layer's parts by torch. ``dtype`` is that of weights and KV."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self._widen = device.type == "cpu" and dtype == torch.bfloat16 and not fast_bf16()
        cos, sin = _rotary_tables(spec)
        # Rounded as the reference rounds them.
        self._cos, self._sin = (table.to(device, dtype) for table in (cos, sin))

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        if self._widen and len(x) >= _WIDEN_MIN_ROWS:
            bias = None if linear.bias is None else linear.bias.float()
            return F.linear(x.float(), linear.weight.float(), bias).to(x.dtype)
        return F.linear(x, linear.weight, linear.bias)

    def add_norm(self, hidden: Tensor, add: Tensor | None, weight: Tensor) -> Tensor:
        """The RMS norm of ``hidden``, to which ``add`` is added first, in place."""
        if add is not None:
            hidden += add
        return F.rms_norm(hidden, weight.shape, weight, self.spec.norm_eps)

    def gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def rotate_store(self, qkv: Tensor, qk_norm: Tensor | None, pool: Pool, batch: Batch) -> None:
        """Norms and rotates queries and keys of ``qkv`` [tokens, all heads, head_dim] in place; keys and
        values go into the pool."""
        spec = self.spec
        rotated = spec.heads + spec.kv_heads
        qk = qkv[:, :rotated]
        normed = qk if qk_norm is None else F.rms_norm(qk, (spec.head_dim,), None, spec.norm_eps) * qk_norm
        cos, sin = self._cos[batch.positions][:, None], self._sin[batch.positions][:, None]
        a, b = normed.chunk(2, dim=-1)
        qk.copy_(torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1))
        keys, values = pool
        keys.index_copy_(0, batch.slots, qkv[:, spec.heads : rotated])
        values.index_copy_(0, batch.slots, qkv[:, rotated:])

    def attend(self, qkv: Tensor, pool: Pool, batch: Batch) -> Tensor:
        """[tokens, heads * head_dim]: each token over the pool's positions of its sequence up to its own."""
        return attend_batch(qkv[:, : self.spec.heads], pool, batch).flatten(1)


class KernelOps(TorchOps):
    """The same by our kernels, on the CPU. Many rows still go through torch's matrix product."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, kernels: Kernels, threads: int) -> None:
        super().__init__(spec, dtype, torch.device("cpu"))
        self._kernels, self._threads = kernels, threads
        self._cos, self._sin = self._cos.float().contiguous(), self._sin.float().contiguous()

    def linear(self, x: Tensor, linear: Linear) -> Tensor:
        n = len(x)
        if n > _KERNEL_MAX_ROWS:
            return super().linear(x, linear)
        out_features, in_features = linear.weight.shape
        y = x.new_empty(n, out_features)
        self._kernels.linear(
            x.data_ptr(),
            linear.weight.data_ptr(),
            _address(linear.bias),
            y.data_ptr(),
            n,
            in_features,
            out_features,
            self._threads,
        )
        return y

    def add_norm(self, hidden: Tensor, add: Tensor | None, weight: Tensor) -> Tensor:
        out = torch.empty_like(hidden)
        n, dim = hidden.shape
        eps, threads = self.spec.norm_eps, self._threads
        self._kernels.add_norm(
            hidden.data_ptr(), _address(add), weight.data_ptr(), out.data_ptr(), n, dim, eps, threads
        )
        return out

    def gate(self, gate_up: Tensor) -> Tensor:
        n, inner = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(n, inner)
        self._kernels.gate(gate_up.data_ptr(), out.data_ptr(), n, inner, self._threads)
        return out

    def rotate_store(self, qkv: Tensor, qk_norm: Tensor | None, pool: Pool, batch: Batch) -> None:
        spec = self.spec
        self._kernels.rotate_store(
            qkv.data_ptr(),
            pool[0].data_ptr(),
            pool[1].data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            self._cos.data_ptr(),
            self._sin.data_ptr(),
            _address(qk_norm),
            len(qkv),
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            spec.norm_eps,
            self._threads,
        )

    def attend(self, qkv: Tensor, pool: Pool, batch: Batch) -> Tensor:
        spec = self.spec
        out = qkv.new_empty(len(qkv), spec.heads * spec.head_dim)
        self._kernels.attend(
            qkv.data_ptr(),
            qkv.stride(0),
            pool[0].data_ptr(),
            pool[1].data_ptr(),
            batch.tables.data_ptr(),
            batch.tables.shape[1],
            batch.starts.data_ptr(),
            batch.ends.data_ptr(),
            len(batch.ends),
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            batch.block,
            1 / math.sqrt(spec.head_dim),
            out.data_ptr(),
            self._threads,
        )
        return out


# Beyond so many rows torch's matrix product is as fast as our kernel, or faster.
_KERNEL_MAX_ROWS = 48
# From here on a copy of the weights in fp32 is soon paid for, where bf16 is slow.
_WIDEN_MIN_ROWS = 8


KERNELS = ("auto", "torch", "triton")


def ops_for(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, *, threads: int = 1, kernels: str = "auto"
) -> TorchOps:
    """By default the fastest that this machine has: Triton on a GPU, our kernels on a CPU. ``torch`` is the
    CPU without them; ``triton`` on a CPU wants its interpreter."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, got {kernels!r}")
    if kernels == "triton" or (kernels == "auto" and device.type != "cpu"):
        # Not to be had, nor needed, everywhere.
        from agentsched.engines.embedded.paged_triton import TritonOps

        return TritonOps(spec, dtype, device)
    found = find_kernels(dtype) if kernels == "auto" else None
    return TorchOps(spec, dtype, device) if found is None else KernelOps(spec, dtype, found, threads)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _rotary_tables(spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, head_dim / 2]."""
    positions = torch.arange(spec.max_context_tokens, dtype=torch.float)
    angles = torch.outer(positions, spec.rope_frequencies)
    return angles.cos() * spec.rope_scale, angles.sin() * spec.rope_scale
