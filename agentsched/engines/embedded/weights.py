"""A model's weights: safetensors in the Hugging Face layout, where its folder has any.

A config with the field ``random_weights_seed`` and no safetensors beside it gets random weights. They
compute at the same cost as trained ones, which is what a scheduler of real computation needs where
no model can be fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from agentsched.engines.embedded.preset import CONFIG, SEED_KEY
from agentsched.engines.embedded.spec import DTYPES, ModelError, ModelSpec

_INDEX = "model.safetensors.index.json"
# Computed here, or equal to another tensor (a tied head), yet written by some savers.
_REDUNDANT = ("rotary_emb.inv_freq", "lm_head.weight")


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the model, in a fixed order."""
    hidden, inner = spec.hidden, spec.inner
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocabulary, hidden)}
    for index in range(spec.layers):
        layer = f"model.layers.{index}."
        linears = {
            "self_attn.q_proj": ((queries, hidden), spec.qkv_bias),
            "self_attn.k_proj": ((keys, hidden), spec.qkv_bias),
            "self_attn.v_proj": ((keys, hidden), spec.qkv_bias),
            "self_attn.o_proj": ((hidden, queries), spec.output_bias),
            "mlp.gate_proj": ((inner, hidden), spec.mlp_bias),
            "mlp.up_proj": ((inner, hidden), spec.mlp_bias),
            "mlp.down_proj": ((hidden, inner), spec.mlp_bias),
        }
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        for name, (shape, biased) in linears.items():
            shapes[f"{layer}{name}.weight"] = shape
            if biased:
                shapes[f"{layer}{name}.bias"] = shape[:1]
        if spec.qk_norm:
            shapes |= {f"{layer}self_attn.{name}_norm.weight": (spec.head_dim,) for name in "qk"}
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tied_head:
        shapes["lm_head.weight"] = (spec.vocabulary, hidden)
    return shapes


def random_tensors(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Weights in fp32 that depend only on the spec and the seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape)
        if name.endswith("norm.weight")
        else torch.randn(shape, generator=generator) * spec.weight_std
        for name, shape in tensor_shapes(spec).items()
    }


def load_tensors(folder: Path, spec: ModelSpec) -> dict[str, Tensor]:
    """The folder's weights; random ones if it has none and its config has a seed for them.

    Raises ``ModelError`` naming the file, or the first tensor that is missing or does not fit.
    """
    files = _tensor_files(folder)
    if not files:
        if spec.seed is None:
            raise ModelError(f"{folder}: no *.safetensors (for random weights, set {SEED_KEY} in {CONFIG})")
        return random_tensors(spec, spec.seed)
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
    check_tensors(spec, tensors)
    return tensors


def check_tensors(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> None:
    """Raises ``ModelError`` naming the first tensor that is missing, of a wrong shape or type, or that
    this decoder would leave out of its computation."""
    shapes = tensor_shapes(spec)
    for name, shape in shapes.items():
        if name not in tensors:
            raise ModelError(f"tensor {name!r} of shape {list(shape)} is missing")
        found = tuple(tensors[name].shape)
        if found != shape:
            raise ModelError(f"tensor {name!r} must have shape {list(shape)}, has {list(found)}")
        if tensors[name].dtype not in DTYPES:
            raise ModelError(f"tensor {name!r} is of type {tensors[name].dtype}, which is not served")
    for name in tensors.keys() - shapes.keys():
        if not name.endswith(_REDUNDANT):
            raise ModelError(f"tensor {name!r} has no place in a model of this config")


def _tensor_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not a readable index of safetensors ({error!r})") from error
