"""``agentsched serve --model FOLDER``: a folder as model hubs have them, from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError, OpenAI
from transformers import AutoConfig, AutoModelForCausalLM

from tests.cli.test_serve import run, serving
from tests.engines.folders import family_folder

SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "count": {"type": "integer", "maximum": 9, "minimum": 0},
    },
    "required": ["mood", "count"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "look", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "sleep", "parameters": {"type": "object", "maxProperties": 0}}},
]
USER: Any = [{"role": "user", "content": "How is it going? Say it in JSON."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 as transformers saves it, with weights of its own."""
    folder = family_folder(tmp_path_factory.mktemp("hub") / "small-qwen3", "qwen", initializer_range=0.3)
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.generation_config.eos_token_id = [config.eos_token_id, 0]
    model.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    fields.pop("random_weights_seed", None)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_a_folder_is_served_from_end_to_end(folder: Path, tmp_path: Path) -> None:
    options = ("--engine", "embedded", "--model", str(folder), "--kv-tokens", "4096")
    with serving(tmp_path, *options) as (_, url), OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["small-qwen3"]

        def ask(messages: Any = USER, **fields: Any) -> Any:
            return client.chat.completions.create(model="small-qwen3", messages=messages, **fields)

        plain = ask(max_tokens=20, logprobs=True, top_logprobs=2)
        told = plain.choices[0].logprobs.content
        assert len(told) == plain.usage.completion_tokens
        assert all(score.logprob == score.top_logprobs[0].logprob for score in told)  # greedy
        assert "".join(score.token for score in told) == plain.choices[0].message.content

        warm = {"temperature": 1.5, "max_tokens": 20}
        seeded = [ask(seed=7, **warm).choices[0].message.content for _ in range(2)]
        assert seeded[0] == seeded[1]
        assert ask(**warm).choices[0].message.content != ask(**warm).choices[0].message.content
        narrow = ask(seed=8, extra_body={"top_k": 1, "repetition_penalty": 1.0}, **warm)
        assert narrow.choices[0].message.content == plain.choices[0].message.content

        described = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
        answer = ask(max_tokens=200, response_format=described, temperature=1.0, seed=1).choices[0]
        assert answer.finish_reason == "stop"
        assert json.loads(answer.message.content)["mood"] in ("good", "bad")

        with pytest.raises(BadRequestError, match="top_k: must be >= 0"):
            ask(extra_body={"top_k": -2})


def test_required_calls_go_round_and_find_their_kv(folder: Path, tmp_path: Path) -> None:
    options = ("--engine", "embedded", "--model", str(folder), "--kv-tokens", "4096")
    with serving(tmp_path, *options) as (_, url), OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        messages, held = list(USER), 0
        for turn in range(3):
            reply: Any = client.chat.completions.create(
                model="small-qwen3",
                messages=messages,
                tools=TOOLS,
                tool_choice={"type": "function", "function": {"name": "look"}} if turn else "required",
                parallel_tool_calls=False,
                max_tokens=200,
                temperature=1.0,
                seed=turn,
            )
            (choice,) = reply.choices
            (call,) = choice.message.tool_calls
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
            arguments = json.loads(call.function.arguments)
            assert set(arguments) == ({"mood", "count"} if call.function.name == "look" else set())
            usage = reply.usage
            # All that was in KV, in whole blocks, though no tokenizer would cut the answer as it was emitted.
            assert usage.prompt_tokens_details.cached_tokens >= held // 16 * 16
            held = usage.total_tokens - 1
            messages += [choice.message.model_dump(exclude_none=True)]
            messages += [{"role": "tool", "tool_call_id": call.id, "content": "as ever"}]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("truncated", "model.safetensors: not a readable safetensors file"),
        ("tokenizer", "tokenizer.json: not a readable tokenizer"),
        ("template", "has no chat template"),
    ],
)
def test_a_broken_folder_is_one_clear_line(folder: Path, tmp_path: Path, broken: str, says: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    match broken:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "tokenizer":
            (tmp_path / "tokenizer.json").write_text("{")
        case _:
            (tmp_path / "tokenizer_config.json").write_text("{}")
    done = run("--model", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
