"""A model's weights: safetensors in the Hugging Face layout, where its folder has any.

A folder without safetensors gets random weights from a seed. They compute at the same cost as
trained ones, which is what a scheduler of real computation needs where no model can be fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from agentsched.engines.embedded.spec import ModelError, ModelSpec

_INDEX = "model.safetensors.index.json"


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the model, in a fixed order."""
    hidden, inner = spec.hidden, spec.inner
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocabulary, hidden)}
    for index in range(spec.layers):
        layer = f"model.layers.{index}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (queries, hidden),
            layer + "self_attn.k_proj.weight": (keys, hidden),
            layer + "self_attn.v_proj.weight": (keys, hidden),
            layer + "self_attn.o_proj.weight": (hidden, queries),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tied_head:
        shapes["lm_head.weight"] = (spec.vocabulary, hidden)
    return shapes


def random_tensors(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Weights in fp32 that depend only on the spec and the seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=generator) * spec.weight_std
        for name, shape in tensor_shapes(spec).items()
    }


def load_tensors(folder: Path, spec: ModelSpec) -> dict[str, Tensor]:
    """The folder's weights, or random ones if it has no safetensors.

    Raises ``ModelError`` naming the first tensor that is missing or has a wrong shape.
    """
    files = _tensor_files(folder)
    if not files:
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
    """Raises ``ModelError`` naming the first tensor that is missing or has a wrong shape."""
    for name, shape in tensor_shapes(spec).items():
        if name not in tensors:
            raise ModelError(f"tensor {name!r} of shape {list(shape)} is missing")
        found = tuple(tensors[name].shape)
        if found != shape:
            raise ModelError(f"tensor {name!r} must have shape {list(shape)}, has {list(found)}")


def _tensor_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{index}: not a readable index of safetensors ({error!r})") from error
    return [folder / name for name in sorted(names)]
