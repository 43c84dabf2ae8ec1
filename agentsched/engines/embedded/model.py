"""A Llama-shaped decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Llama, Mistral, Qwen2 and Qwen3 are this one decoder; they differ in which biases there are and in
whether queries and keys are normed, and the spec says so.

Only the arithmetic of the layers is here. All sequences of a step go through them packed as one
batch of tokens; attention, the only part that looks at other tokens, is handed in by the caller,
who owns the KV. Projections that read the same input are fused into one matrix: on small batches
the time goes into dispatch and reading weights, not arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agentsched.engines.embedded.spec import ModelSpec
from agentsched.engines.embedded.weights import check_tensors

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``(layer, q, k, v)`` of shapes [tokens, heads, head_dim] to [tokens, query heads, head_dim]."""


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Layer:
    """``qk_norm`` is a weight for each query and key head, [heads + kv heads, head_dim]."""

    input_norm: Tensor
    qkv: _Linear
    qk_norm: Tensor | None
    output: _Linear
    mlp_norm: Tensor
    gate_up: _Linear
    down: _Linear


class Llama:
    """The decoder of all served families with its weights. Stateless: it may serve any number of KV pools."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Takes tensors by their Hugging Face names. Raises ``ModelError`` if one does not fit."""
        check_tensors(spec, tensors)
        self.spec, self.dtype = spec, dtype
        self._embedding = tensors["model.embed_tokens.weight"].to(dtype)
        self._layers = [_layer(spec, tensors, index, dtype) for index in range(spec.layers)]
        self._norm = tensors["model.norm.weight"].to(dtype)
        self._head = self._embedding if spec.tied_head else tensors["lm_head.weight"].to(dtype)
        self._cos, self._sin = (table.to(dtype) for table in _rotary_tables(spec))

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states [tokens, hidden] after the last norm, of packed ``tokens`` at ``positions``."""
        spec = self.spec
        hidden = F.embedding(tokens, self._embedding)
        shape, eps = (spec.hidden,), spec.norm_eps
        cos, sin = self._cos[positions], self._sin[positions]
        rotated = spec.heads + spec.kv_heads
        for index, layer in enumerate(self._layers):
            normed = F.rms_norm(hidden, shape, layer.input_norm, eps)
            qkv = layer.qkv(normed).view(len(tokens), rotated + spec.kv_heads, spec.head_dim)
            qk = qkv[:, :rotated]
            if layer.qk_norm is not None:
                qk = F.rms_norm(qk, (spec.head_dim,), None, eps) * layer.qk_norm
            qk = _rotate(qk, cos, sin)
            mixed = attend(index, qk[:, : spec.heads], qk[:, spec.heads :], qkv[:, rotated:])
            hidden = hidden + layer.output(mixed.flatten(1))
            normed = F.rms_norm(hidden, shape, layer.mlp_norm, eps)
            gate, up = layer.gate_up(normed).chunk(2, dim=-1)
            hidden = hidden + layer.down(F.silu(gate) * up)
        return F.rms_norm(hidden, shape, self._norm, eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [rows, vocabulary] in fp32."""
        return F.linear(hidden, self._head).float()


def _layer(spec: ModelSpec, tensors: Mapping[str, Tensor], index: int, dtype: torch.dtype) -> _Layer:
    def get(*names: str) -> Tensor:
        parts = [tensors[f"model.layers.{index}.{name}"] for name in names]
        return torch.cat(parts).to(dtype) if len(parts) > 1 else parts[0].to(dtype)

    def linear(*names: str, bias: bool) -> _Linear:
        weight = get(*(f"{name}.weight" for name in names))
        return _Linear(weight, get(*(f"{name}.bias" for name in names)) if bias else None)

    qk_norm = None
    if spec.qk_norm:
        heads = [get("self_attn.q_norm.weight")] * spec.heads
        qk_norm = torch.stack(heads + [get("self_attn.k_norm.weight")] * spec.kv_heads)
    return _Layer(
        input_norm=get("input_layernorm.weight"),
        qkv=linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", bias=spec.qkv_bias),
        qk_norm=qk_norm,
        output=linear("self_attn.o_proj", bias=spec.output_bias),
        mlp_norm=get("post_attention_layernorm.weight"),
        gate_up=linear("mlp.gate_proj", "mlp.up_proj", bias=spec.mlp_bias),
        down=linear("mlp.down_proj", bias=spec.mlp_bias),
    )


def _rotary_tables(spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, 1, head_dim]; the sines' first half is negated for ``_rotate``."""
    positions = torch.arange(spec.max_context_tokens, dtype=torch.float)
    angles = torch.outer(positions, spec.rope_frequencies)
    cos, sin = angles.cos() * spec.rope_scale, angles.sin() * spec.rope_scale
    return torch.cat((cos, cos), dim=1)[:, None], torch.cat((-sin, sin), dim=1)[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + x.roll(half, dims=-1) * sin
