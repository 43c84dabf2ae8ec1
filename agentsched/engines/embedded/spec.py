"""What a model folder's ``config.json`` says, reduced to what the decoder computes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from agentsched.engines.embedded.preset import CONFIG, SEED_KEY

# Their frequencies do not depend on the length of the context, so one table serves all positions.
_STATIC_ROPE = ("linear", "llama3", "yarn")


class ModelError(Exception):
    """The model cannot be served; the message names the file, field or tensor at fault."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A Llama-family decoder in numbers. ``heads`` are query heads, ``inner`` is the MLP's width.

    ``rope_frequencies`` are radians a position, one for each pair of dimensions of a head; cosines
    and sines are multiplied by ``rope_scale``. ``weight_std`` and ``seed`` make random weights.
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_context_tokens: int
    norm_eps: float
    tied_head: bool
    rope_frequencies: Tensor
    rope_scale: float
    weight_std: float
    seed: int
    dtype: torch.dtype

    @classmethod
    def of(cls, config: LlamaConfig) -> ModelSpec:
        """Raises ``ModelError`` for what this decoder does not compute."""
        if config.attention_bias or config.mlp_bias:
            raise ModelError("attention_bias and mlp_bias must be false")
        if config.hidden_act != "silu":
            raise ModelError(f"hidden_act must be 'silu', got {config.hidden_act!r}")
        kv_heads, head_dim = config.num_key_value_heads, config.head_dim
        if not kv_heads or not head_dim or config.num_attention_heads % kv_heads:
            raise ModelError("num_attention_heads must be a multiple of num_key_value_heads")
        frequencies, scale = _rope(config, head_dim)
        return cls(
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            max_context_tokens=config.max_position_embeddings,
            norm_eps=config.rms_norm_eps,
            tied_head=config.tie_word_embeddings,
            rope_frequencies=frequencies,
            rope_scale=scale,
            weight_std=config.initializer_range,
            seed=int(getattr(config, SEED_KEY, 0)),
            dtype=torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32,
        )


def load_spec(folder: Path) -> ModelSpec:
    """Read ``config.json``. Raises ``ModelError`` naming the file and the field at fault."""
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(fields, dict) or fields.get("model_type") != "llama":
        raise ModelError(f"{path}: model_type must be 'llama'")
    try:
        return ModelSpec.of(LlamaConfig.from_dict(fields))
    except (ModelError, StrictDataclassError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: {error}") from error


def _rope(config: LlamaConfig, head_dim: int) -> tuple[Tensor, float]:
    rope = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return 1.0 / float(rope["rope_theta"]) ** exponents, 1.0
    if kind not in _STATIC_ROPE:
        raise ModelError(f"rope_type {kind!r} is not served; served are default, {', '.join(_STATIC_ROPE)}")
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
    return frequencies, float(scale)
