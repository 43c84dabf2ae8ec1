"""What a model folder's ``config.json`` says, reduced to what the decoder computes.

A sliding window is served exactly by never looking past it: up to the window's length a windowed
model computes what a full one does, so the window bounds the context.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from agentsched.engines.embedded.preset import CONFIG, SEED_KEY

# Their frequencies do not depend on the length of the context, so one table serves all positions.
_STATIC_ROPE = ("linear", "llama3", "yarn")
_FAMILIES: dict[str, type[PreTrainedConfig]] = {
    config.model_type: config for config in (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class ModelError(Exception):
    """The model cannot be served; the message names the file, field or tensor at fault."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A Llama-shaped decoder in numbers. ``heads`` are query heads, ``inner`` is the MLP's width.

    ``qkv_bias``, ``output_bias`` and ``mlp_bias`` say which linear layers have one; ``qk_norm`` that
    queries and keys are normed a head at a time before they are rotated. ``rope_frequencies`` are
    radians a position, one for each pair of dimensions of a head; cosines and sines are multiplied by
    ``rope_scale``. ``weight_std`` and ``seed`` make random weights; without a seed there must be real ones.
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
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope_frequencies: Tensor
    rope_scale: float
    weight_std: float
    seed: int | None
    dtype: torch.dtype

    @classmethod
    def of(cls, config: PreTrainedConfig) -> ModelSpec:
        """Raises ``ModelError`` for what this decoder does not compute."""
        if config.hidden_act != "silu":
            raise ModelError(f"hidden_act must be 'silu', got {config.hidden_act!r}")
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError("quantization_config: quantized weights are not served")
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        if not heads or not kv_heads or heads % kv_heads:
            raise ModelError("num_attention_heads must be a multiple of num_key_value_heads")
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        biased = bool(getattr(config, "attention_bias", False))
        frequencies, scale = _rope(config, head_dim)
        return cls(
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            max_context_tokens=min(config.max_position_embeddings, _window(config)),
            norm_eps=config.rms_norm_eps,
            tied_head=config.tie_word_embeddings,
            qkv_bias=biased or config.model_type == "qwen2",
            output_bias=biased,
            mlp_bias=bool(getattr(config, "mlp_bias", False)),
            qk_norm=config.model_type == "qwen3",
            rope_frequencies=frequencies,
            rope_scale=scale,
            weight_std=config.initializer_range,
            seed=getattr(config, SEED_KEY, None),
            dtype=_dtype(config),
        )


def load_spec(folder: Path) -> ModelSpec:
    """Read ``config.json``. Raises ``ModelError`` naming the file and the field at fault."""
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable JSON file ({error})") from error
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind not in _FAMILIES:
        served = ", ".join(_FAMILIES)
        raise ModelError(f"{path}: model_type {kind!r} is not served; served are {served}")
    try:
        return ModelSpec.of(_FAMILIES[kind].from_dict(fields))
    except (ModelError, StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: {error.args[0] if error.args else error}") from error


def _window(config: PreTrainedConfig) -> int:
    """Positions that every layer sees from every position."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise ModelError(f"layer_types: {sorted(unknown)} are not served")
    return int(window) if window and "sliding_attention" in kinds else int(config.max_position_embeddings)


def _dtype(config: PreTrainedConfig) -> torch.dtype:
    """The weights' own type; fp32 where the config names none."""
    dtype = torch.float32 if config.dtype is None else config.dtype
    if dtype not in DTYPES:
        served = ", ".join(str(kind).removeprefix("torch.") for kind in DTYPES)
        raise ModelError(f"dtype {config.dtype} is not served; served are {served}")
    return dtype


def _rope(config: PreTrainedConfig, head_dim: int) -> tuple[Tensor, float]:
    rope = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("rope_parameters.partial_rotary_factor must be 1")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return 1.0 / float(rope["rope_theta"]) ** exponents, 1.0
    if kind not in _STATIC_ROPE:
        raise ModelError(f"rope_type {kind!r} is not served; served are default, {', '.join(_STATIC_ROPE)}")
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
    return frequencies, float(scale)
