"""A Llama-shaped decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Llama, Mistral, Qwen2 and Qwen3 are this one decoder; they differ in which biases there are and in
whether queries and keys are normed, and the spec says so.

Only the order of a layer's parts is here; ``ops.py`` computes them. All sequences of a step go through
packed as one batch of tokens, and KV is the caller's. Projections that read the same input are fused into
one matrix: on small batches the time goes into dispatch and reading weights, not arithmetic. What comes
after the last layer's KV is computed for tokens that are sampled alone: with 8 layers a tenth of a prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agentsched.engines.embedded.batch import Batch
from agentsched.engines.embedded.ops import Linear, Pool, TorchOps
from agentsched.engines.embedded.pages import settled
from agentsched.engines.embedded.spec import ModelSpec
from agentsched.engines.embedded.weights import check_tensors


@dataclass(frozen=True, slots=True)
class _Layer:
    """``qk_norm`` is a weight for each query and key head, [heads + kv heads, head_dim]."""

    input_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Llama:
    """The decoder of all served families with its weights. Stateless: it may serve any number of KV pools."""

    def __init__(
        self, spec: ModelSpec, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        """Takes tensors by their Hugging Face names. Raises ``ModelError`` if one does not fit."""
        check_tensors(spec, tensors)
        self.spec, self.dtype, self.device = spec, dtype, torch.device(device)
        self._tensors = tensors
        self._embedding = self._get("model.embed_tokens.weight")
        self._layers = [self._layer(f"model.layers.{index}.") for index in range(spec.layers)]
        self._norm = self._get("model.norm.weight")
        self._head = Linear(self._embedding if spec.tied_head else self._get("lm_head.weight"), None)
        del self._tensors

    def forward(self, batch: Batch, pools: Sequence[Pool], ops: TorchOps) -> Tensor:
        """Writes the batch's KV into the pools, a pool a layer; hidden states [sampled tokens, hidden]
        after the last norm."""
        spec = self.spec
        hidden = F.embedding(batch.tokens, self._embedding)
        normed = ops.add_norm(hidden, None, self._layers[0].input_norm)
        for index, (layer, pool) in enumerate(zip(self._layers, pools, strict=True)):
            qkv = ops.linear(normed, layer.qkv)
            qkv = qkv.view(len(qkv), spec.heads + 2 * spec.kv_heads, spec.head_dim)
            ops.rotate_store(qkv, layer.qk_norm, pool, batch)
            last = index == spec.layers - 1
            if last and batch.tail is not batch:
                if not len(batch.last):
                    return hidden[:0]
                hidden, qkv, batch = hidden[batch.last], qkv[batch.last], batch.tail
            mixed = ops.attend(qkv, pool, batch)
            normed = ops.add_norm(hidden, ops.linear(mixed, layer.output), layer.mlp_norm)
            inner = ops.gate(ops.linear(normed, layer.gate_up))
            following = self._norm if last else self._layers[index + 1].input_norm
            normed = ops.add_norm(hidden, ops.linear(inner, layer.down), following)
        return normed

    def logits(self, hidden: Tensor, ops: TorchOps) -> Tensor:
        """Scores [rows, vocabulary] in fp32."""
        return ops.linear(hidden, self._head).float()

    def _get(self, *names: str) -> Tensor:
        parts = [self._tensors[name] for name in names]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return settled(whole, self.dtype, self.device)

    def _linear(self, *names: str, bias: bool) -> Linear:
        weight = self._get(*(f"{name}.weight" for name in names))
        return Linear(weight, self._get(*(f"{name}.bias" for name in names)) if bias else None)

    def _layer(self, at: str) -> _Layer:
        spec, attention, mlp = self.spec, f"{at}self_attn.", f"{at}mlp."
        qk_norm = None
        if spec.qk_norm:
            heads = [self._get(f"{attention}q_norm.weight")] * spec.heads
            qk_norm = torch.stack(heads + [self._get(f"{attention}k_norm.weight")] * spec.kv_heads)
        return _Layer(
            input_norm=self._get(f"{at}input_layernorm.weight"),
            qkv=self._linear(*(f"{attention}{name}_proj" for name in "qkv"), bias=spec.qkv_bias),
            qk_norm=qk_norm,
            output=self._linear(f"{attention}o_proj", bias=spec.output_bias),
            mlp_norm=self._get(f"{at}post_attention_layernorm.weight"),
            gate_up=self._linear(f"{mlp}gate_proj", f"{mlp}up_proj", bias=spec.mlp_bias),
            down=self._linear(f"{mlp}down_proj", bias=spec.mlp_bias),
        )
