"""The decoder over paged KV computes what the reference implementation computes."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from agentsched.engines.contract import Sampling
from agentsched.engines.embedded import attention
from agentsched.engines.embedded.executor import TorchExecutor
from agentsched.engines.embedded.model import Llama
from agentsched.engines.embedded.spec import ModelError, ModelSpec, load_spec
from agentsched.engines.embedded.weights import load_tensors, random_tensors, tensor_shapes
from agentsched.engines.execution import Row, RowFailed

GREEDY = Sampling(max_output_tokens=1)
BLOCK = 4
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    # Larger than usual: with nearly uniform attention a wrong mask would hardly show.
    "initializer_range": 0.3,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "one key head": {"num_key_value_heads": 1, "head_dim": 8},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec_of(**changes: Any) -> ModelSpec:
    return ModelSpec.of(LlamaConfig.from_dict(CONFIG | changes))


def executor_of(spec: ModelSpec, dtype: torch.dtype = torch.float32, seed: int = 7) -> TorchExecutor:
    return TorchExecutor(Llama(spec, random_tensors(spec, seed), dtype), num_blocks=128, block_tokens=BLOCK)


def reference(changes: dict[str, Any], seed: int = 7) -> LlamaForCausalLM:
    config = LlamaConfig.from_dict(CONFIG | changes)
    model: LlamaForCausalLM = LlamaForCausalLM(config)
    tensors = random_tensors(ModelSpec.of(config), seed)
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def expected(model: LlamaForCausalLM, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def prompt(seed: int, length: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(CONFIG["vocab_size"]) for _ in range(length)]


def scattered(seed: int, length: int) -> list[int]:
    return random.Random(seed).sample(range(128), -(-length // BLOCK))


def row(
    tokens: list[int], start: int, end: int, blocks: list[int], sampling: Sampling | None = GREEDY
) -> Row:
    return Row(call="c", tokens=tokens[start:end], start=start, blocks=blocks, sampling=sampling, step=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_prefill_equals_the_reference(variant: str) -> None:
    changes = VARIANTS[variant]
    tokens = prompt(1, 45)
    got = executor_of(spec_of(**changes)).logits([row(tokens, 0, 45, scattered(2, 45))])
    torch.testing.assert_close(got[0], expected(reference(changes), tokens)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["one run", "three runs", "scattered"])
def test_chunks_and_decode_equal_the_reference_at_every_position(variant: str, layout: str) -> None:
    changes = VARIANTS[variant]
    tokens = prompt(3, 90)
    whole = expected(reference(changes), tokens)
    blocks = {
        "one run": list(range(5, 28)),
        "three runs": [*range(40, 48), *range(10, 18), *range(80, 87)],
        "scattered": scattered(4, 90),
    }[layout]
    executor = executor_of(spec_of(**changes))
    cuts = [0, 1, 18, 19, 50, 81, *range(82, 91)]
    for start, end in pairwise(cuts):
        got = executor.logits([row(tokens, start, end, blocks)])
        torch.testing.assert_close(got[0], whole[end - 1], atol=1e-4, rtol=1e-4)


def test_rows_of_a_mixed_batch_do_not_disturb_each_other() -> None:
    model, executor = reference({}), executor_of(spec_of())
    decoding, chunked, fresh = prompt(5, 60), prompt(6, 70), prompt(7, 13)
    places = random.Random(8).sample(range(128), 60)
    tables = places[:16], places[16:40], places[40:44]
    executor.logits([row(decoding, 0, 59, tables[0]), row(chunked, 0, 30, tables[1], None)])
    got = executor.logits(
        [
            row(decoding, 59, 60, tables[0]),
            row(chunked, 30, 55, tables[1], None),
            row(fresh, 0, 13, tables[2]),
        ]
    )
    torch.testing.assert_close(got[0], expected(model, decoding)[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1], expected(model, fresh)[-1], atol=1e-4, rtol=1e-4)
    rest = executor.logits([row(chunked, 55, 70, tables[1])])
    torch.testing.assert_close(rest[0], expected(model, chunked)[-1], atol=1e-4, rtol=1e-4)


def test_bf16_stays_close_to_fp32() -> None:
    spec, tokens, blocks = spec_of(head_dim=64, initializer_range=0.1), prompt(9, 100), scattered(10, 100)
    exact = executor_of(spec).logits([row(tokens, 0, 100, blocks)])[0]
    rounded = executor_of(spec, torch.bfloat16)
    rounded.logits([row(tokens, 0, 60, blocks)])
    close = rounded.logits([row(tokens, 60, 100, blocks)])[0]
    assert torch.corrcoef(torch.stack([exact, close]))[0, 1] > 0.99


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(("queries", "pieces"), [(1, [70]), (1, [20, 33, 1]), (9, []), (300, [64, 5])])
def test_both_ways_of_attention_agree_with_plain_softmax(queries: int, pieces: list[int], group: int) -> None:
    generator = torch.Generator().manual_seed(queries + sum(pieces))

    def random_tensor(length: int, heads: int) -> Tensor:
        return torch.randn(length, heads, 16, generator=generator)

    q = random_tensor(queries, 2 * group)
    past = [(random_tensor(length, 2), random_tensor(length, 2)) for length in pieces]
    new = (random_tensor(queries, 2), random_tensor(queries, 2))
    keys = torch.cat([*(piece[0] for piece in past), new[0]]).repeat_interleave(group, dim=1)
    values = torch.cat([*(piece[1] for piece in past), new[1]]).repeat_interleave(group, dim=1)
    seen = torch.ones(queries, len(keys), dtype=torch.bool).tril(len(keys) - queries)
    scores = torch.einsum("qhd,khd->hqk", q, keys) / 4
    plain = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), values)
    for way in (attention.attend_fused, attention.attend_tiled):
        torch.testing.assert_close(way(q, past, new), plain, atol=1e-5, rtol=1e-5)
        if queries == 1:
            torch.testing.assert_close(way(q, [*past, new], None), plain, atol=1e-5, rtol=1e-5)


def sample(executor: TorchExecutor, tokens: list[int], sampling: Sampling, step: int = 0) -> int:
    blocks = list(range(-(-len(tokens) // BLOCK)))
    whole = Row(call="c", tokens=tokens, start=0, blocks=blocks, sampling=sampling, step=step)
    seconds, [token] = executor.run([whole])
    assert seconds > 0
    assert isinstance(token, int)
    return token


def test_sampling_is_greedy_or_seeded() -> None:
    executor, tokens = executor_of(spec_of(initializer_range=0.05)), prompt(11, 20)
    greedy = int(executor.logits([row(tokens, 0, 20, [0, 1, 2, 3, 4])])[0].argmax())
    assert sample(executor, tokens, GREEDY) == greedy
    warm = Sampling(max_output_tokens=1, temperature=2.0, seed=5)
    drawn = [sample(executor, tokens, warm, step) for step in range(40)]
    assert drawn == [sample(executor, tokens, warm, step) for step in range(40)]
    reseeded = Sampling(max_output_tokens=1, temperature=2.0, seed=6)
    assert drawn != [sample(executor, tokens, reseeded, step) for step in range(40)]
    assert len(set(drawn)) > 5


@pytest.mark.parametrize("temperature", [1e-320, 1e-300, 1e-40, 1e308])
@pytest.mark.parametrize("top_p", [1.0, 0.5, 1e-320])
def test_no_temperature_fails_the_batch(temperature: float, top_p: float) -> None:
    executor, tokens = executor_of(spec_of(initializer_range=0.05)), prompt(11, 20)
    extreme = Sampling(max_output_tokens=1, temperature=temperature, top_p=top_p)
    drawn = sample(executor, tokens, extreme)
    if temperature < 1:
        assert drawn == sample(executor, tokens, GREEDY)


def test_top_p_keeps_only_the_likeliest_tokens() -> None:
    executor, tokens = executor_of(spec_of(initializer_range=0.05)), prompt(12, 20)
    chances = executor.logits([row(tokens, 0, 20, [0, 1, 2, 3, 4])])[0].softmax(-1)
    top = chances.sort(descending=True)
    allowed = set(top.indices[: int((top.values.cumsum(0) < 0.3).sum()) + 1].tolist())
    nucleus = Sampling(max_output_tokens=1, temperature=1.0, top_p=0.3)
    drawn = {sample(executor, tokens, nucleus, step) for step in range(100)}
    assert drawn <= allowed
    assert len(drawn) > 1
    narrow = Sampling(max_output_tokens=1, temperature=1.0, top_p=1e-9)
    assert sample(executor, tokens, narrow) == int(chances.argmax())


def test_logits_that_are_not_finite_are_an_error() -> None:
    spec = spec_of()
    tensors = random_tensors(spec, 0)
    tensors["model.embed_tokens.weight"][3] = float("nan")
    executor = TorchExecutor(Llama(spec, tensors, torch.float32), num_blocks=8, block_tokens=BLOCK)
    [broken, whole] = executor.run([row([1, 3], 0, 2, [0]), row([1, 2], 0, 2, [1])])[1]
    assert broken == RowFailed("the model's logits are not finite")
    assert whole == sample(executor, [1, 2], GREEDY)


def test_an_executor_refuses_empty_pools() -> None:
    with pytest.raises(ValueError, match="num_blocks must be >= 1"):
        TorchExecutor(Llama(spec_of(), random_tensors(spec_of(), 0), torch.float32), num_blocks=0)


# The model's folder


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def test_random_weights_depend_on_the_seed_in_the_config(tmp_path: Path) -> None:
    write_config(tmp_path, random_weights_seed=3)
    spec = load_spec(tmp_path)
    tensors = load_tensors(tmp_path, spec)
    assert all(torch.equal(tensors[name], again) for name, again in random_tensors(spec, 3).items())
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(tensors[name], random_tensors(spec, 4)[name])


@pytest.mark.parametrize("shards", [1, 2])
def test_safetensors_are_served_when_the_folder_has_them(tmp_path: Path, shards: int) -> None:
    write_config(tmp_path)
    spec = load_spec(tmp_path)
    tensors = random_tensors(spec, 99)
    names = list(tensors)
    files = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, tmp_path / file)
    if shards > 1:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    loaded = load_tensors(tmp_path, spec)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensor_shapes(spec))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_config(tmp_path)
    tensors = random_tensors(load_spec(tmp_path), 0)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'model.layers.1.self_attn.k_proj.weight' .*\[32, 48\] is missing"):
        load_tensors(tmp_path, load_spec(tmp_path))


def test_a_tensor_of_a_wrong_shape_is_named(tmp_path: Path) -> None:
    write_config(tmp_path)
    tensors = random_tensors(load_spec(tmp_path), 0)
    tensors["lm_head.weight"] = torch.zeros(97, 47)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'lm_head.weight' must have shape \[97, 48\], has \[97, 47\]"):
        load_tensors(tmp_path, load_spec(tmp_path))


def test_a_broken_safetensors_file_is_named(tmp_path: Path) -> None:
    write_config(tmp_path)
    spec, path = load_spec(tmp_path), tmp_path / "model.safetensors"
    save_file(random_tensors(spec, 0), path)
    whole = path.read_bytes()
    for broken in (b"not tensors", b"", whole[:-1], whole[:100], b"\xff" * 8 + whole[8:]):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=r"model\.safetensors: not a readable safetensors file"):
            load_tensors(tmp_path, spec)


def test_a_shard_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    write_config(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "model-1.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-1\.safetensors: not a readable"):
        load_tensors(tmp_path, load_spec(tmp_path))
    index.write_text('{"weight_map": {"a": 3, "b": "c"}}')
    with pytest.raises(ModelError, match="not a readable index"):
        load_tensors(tmp_path, load_spec(tmp_path))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("lm_head.weight", torch.zeros(97, 48, dtype=torch.int8), "'lm_head.weight' is of type torch.int8"),
        ("model.layers.0.self_attn.q_proj.bias", torch.zeros(96), "q_proj.bias' has no place in a model"),
        ("model.layers.0.self_attn.q_norm.weight", torch.ones(16), "q_norm.weight' has no place in a model"),
    ],
)
def test_no_tensor_is_left_out_or_misread_in_silence(
    tmp_path: Path, name: str, tensor: Tensor, message: str
) -> None:
    write_config(tmp_path)
    spec = load_spec(tmp_path)
    save_file(random_tensors(spec, 0) | {name: tensor}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load_tensors(tmp_path, spec)


def test_a_folder_without_weights_is_not_served_by_random_ones_in_silence(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    with pytest.raises(ModelError, match=r"no \*\.safetensors .*random_weights_seed"):
        load_tensors(tmp_path, load_spec(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not served; served are llama, mistral, qwen2, qwen3"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"dtype": "float8_e4m3fn"}, "dtype torch.float8_e4m3fn is not served"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types: .'linear_attention'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"num_key_value_heads": 4}, "multiple of num_key_value_heads"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'dynamic'",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
            "Missing required keys in `rope_parameters`",
        ),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_a_config_that_cannot_be_served_names_the_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        load_spec(tmp_path)


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: not a readable JSON file"):
        load_spec(tmp_path)
