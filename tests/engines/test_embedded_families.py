"""Each served model family computes what the reference computes, however its context came to be in KV."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from agentsched.core.events import CallFinished
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import GenerateRequest, RequestRefused, Sampling, TokensOut
from agentsched.engines.embedded.__main__ import load_executor
from agentsched.engines.embedded.executor import TorchExecutor
from agentsched.engines.execution import Row

BLOCK = 4
GREEDY = Sampling(max_output_tokens=1)
SIZE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Larger than usual: with nearly uniform attention a wrong mask would hardly show.
    "initializer_range": 0.3,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
    "mistral with a wide window": {"model_type": "mistral", "sliding_window": 200},
    "qwen2": {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen2 tied, yarn": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_parameters": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3 tied, with biases": {
        "model_type": "qwen3",
        "head_dim": 8,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def saved(folder: Path, dtype: torch.dtype = torch.float32, **fields: Any) -> PreTrainedModel:
    """A model of random weights as transformers saves it; norms and biases are random too."""
    config = AutoConfig.for_model(**(SIZE | fields))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(noise + 1 if "norm" in name else noise)
    model.to(dtype).save_pretrained(folder)  # type: ignore[arg-type]
    return model.eval()  # type: ignore[no-any-return, no-untyped-call]


def expected(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits.float()


def prompt(seed: int, length: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(SIZE["vocab_size"]) for _ in range(length)]


def row(
    tokens: list[int], start: int, end: int, blocks: list[int], sampling: Sampling | None = GREEDY
) -> Row:
    return Row(call="c", tokens=tokens[start:end], start=start, blocks=blocks, sampling=sampling, step=0)


def executor_of(folder: Path) -> TorchExecutor:
    return load_executor(folder, 512, block_tokens=BLOCK)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_decode_and_batches_equal_the_reference(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path, **FAMILIES[family])
    executor = executor_of(tmp_path)
    tokens, other = prompt(3, 90), prompt(4, 60)
    whole, beside = expected(model, tokens), expected(model, other)
    places = random.Random(5).sample(range(128), 40)
    blocks, others = places[:24], places[24:]
    for start, end in pairwise([0, 1, 18, 19, 50, 81, *range(82, 91)]):
        rows = [row(tokens, start, end, blocks)]
        if end <= 60:
            rows.append(row(other, start, end, others))
        got = executor.logits(rows)
        torch.testing.assert_close(got[0], whole[end - 1], atol=1e-4, rtol=1e-4)
        if end <= 60:
            torch.testing.assert_close(got[1], beside[end - 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_reused_prefixes_and_preemption_do_not_change_greedy_output(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path, **FAMILIES[family])
    engine = BatchingEngine(load_executor(tmp_path, 160, block_tokens=BLOCK), "embedded", chunk_tokens=13)
    shared = prompt(8, 40)
    prompts = [shared[: 10 * index] + prompt(20 + index, 30) for index in range(5)]
    for index, tokens in enumerate([*prompts, *prompts]):
        sampling = Sampling(max_output_tokens=10)
        request = GenerateRequest(call=f"c{index}", program=f"p{index}", prompt=tokens, sampling=sampling)
        engine.submit(request, 0.0)
    said: dict[str, list[int]] = {}
    cached = 0
    while engine.has_work:
        for item in engine.step(0.0)[1]:
            if isinstance(item, TokensOut):
                said.setdefault(item.call, []).extend(item.tokens)
            elif isinstance(item, CallFinished):
                cached += item.cached_tokens
    assert cached > 0
    for index, tokens in enumerate(prompts):
        told = said[f"c{index}"]
        assert told == said[f"c{index + 5}"]
        assert told == expected(model, [*tokens, *told])[len(tokens) - 1 : -1].argmax(-1).tolist()


def test_a_sliding_window_bounds_the_context_and_is_exact_up_to_it(tmp_path: Path) -> None:
    model = saved(tmp_path, model_type="mistral", sliding_window=48)
    executor = executor_of(tmp_path)
    tokens = prompt(6, 60)
    assert executor.max_context_tokens == 48
    got = executor.logits([row(tokens, 0, 48, list(range(12)))])
    torch.testing.assert_close(got[0], expected(model, tokens[:48])[-1], atol=1e-4, rtol=1e-4)
    engine = BatchingEngine(executor, "embedded")
    with pytest.raises(RequestRefused, match="48 tokens that a context may have"):
        engine.submit(GenerateRequest(call="c", program="p", prompt=tokens, sampling=GREEDY), 0.0)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"model_type": "mistral"}, 256),  # its window is wider than its context
        ({"model_type": "qwen2", "sliding_window": 32}, 256),
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True}, 256),
        (
            {"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1},
            32,
        ),
    ],
)
def test_a_window_counts_where_a_layer_has_one(tmp_path: Path, fields: dict[str, Any], limit: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZE | fields | {"random_weights_seed": 1}))
    assert executor_of(tmp_path).max_context_tokens == limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_half_precision_is_as_close_to_exact_as_the_reference_is(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tokens = prompt(9, 100)
    model = saved(tmp_path, dtype, model_type=kind, initializer_range=0.1, head_dim=64)
    rounded = expected(model, tokens)[-1]
    exact = expected(model.to(torch.float32), tokens)[-1]  # type: ignore[arg-type]
    executor = executor_of(tmp_path)
    blocks = list(range(25))
    executor.logits([row(tokens, 0, 60, blocks)])
    got = executor.logits([row(tokens, 60, 100, blocks)])[0]
    assert (got - exact).norm() < 2 * (rounded - exact).norm() + 0.01 * exact.norm()
