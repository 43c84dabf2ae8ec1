"""The embedded engine whole: batching, paged KV and the model together, in process and as one."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from agentsched.core.decisions import Retain, Segment, Worth
from agentsched.core.events import CallAborted, CallFinished, FirstToken
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import EngineGone, GenerateRequest, Sampling, TokensOut
from agentsched.engines.embedded.executor import TorchExecutor
from agentsched.engines.embedded.frontend import ChatFrontend
from agentsched.engines.embedded.model import Llama
from agentsched.engines.embedded.preset import ensure_model
from agentsched.engines.embedded.recorded import RecordedTurn
from agentsched.engines.embedded.spec import ModelSpec
from agentsched.engines.embedded.weights import random_tensors
from agentsched.engines.frontend import ChatRequest
from agentsched.engines.process import EngineProcess

BLOCK = 4
VOCABULARY = 97
# Weights larger than usual, so that each token depends visibly on the whole context.
SPEC = ModelSpec.of(
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
)
MODEL = Llama(SPEC, random_tensors(SPEC, 5), torch.float32)

Calls = Sequence[tuple[str, list[int]]]


def engine_of(num_blocks: int, **options: Any) -> BatchingEngine:
    executor = TorchExecutor(MODEL, num_blocks=num_blocks, block_tokens=BLOCK)
    return BatchingEngine(executor, "embedded", **options)


def submit(engine: BatchingEngine, call: str, prompt: list[int], now: float, output: int = 12) -> None:
    program = call.partition("/")[0]
    sampling = Sampling(max_output_tokens=output)
    engine.submit(GenerateRequest(call=call, program=program, prompt=prompt, sampling=sampling), now)


def drain(engine: BatchingEngine, now: float) -> tuple[dict[str, list[int]], dict[str, CallFinished]]:
    tokens: dict[str, list[int]] = {}
    finished: dict[str, CallFinished] = {}
    for tick in range(10_000):
        if not engine.has_work:
            return tokens, finished
        for output in engine.step(now + tick)[1]:
            match output:
                case TokensOut(call=call, tokens=more):
                    tokens.setdefault(call, []).extend(more)
                case CallFinished(call=call):
                    finished[call] = output
                case _:
                    pass
        engine.check_invariants()
    raise AssertionError("the engine does not end its work")


def alone(prompt: list[int]) -> list[int]:
    """What the model says to a prompt when nothing else is there."""
    engine = engine_of(64, chunk_tokens=256)
    submit(engine, "alone", prompt, 0.0)
    return drain(engine, 0.0)[0]["alone"]


def random_prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts of 10 to 120 tokens of which many begin alike."""
    source = random.Random(seed)
    shared = [source.randrange(VOCABULARY) for _ in range(60)]
    return [
        shared[: source.randrange(60)]
        + [source.randrange(VOCABULARY) for _ in range(source.randrange(10, 60))]
        for _ in range(count)
    ]


@pytest.mark.parametrize(("num_blocks", "chunk_tokens"), [(400, 33), (60, 7), (40, 16)])
def test_reuse_eviction_and_preemption_do_not_change_the_output(num_blocks: int, chunk_tokens: int) -> None:
    prompts = random_prompts(16, seed=num_blocks)
    engine = engine_of(num_blocks, chunk_tokens=chunk_tokens, max_running=6)
    for index, prompt in enumerate(prompts):
        submit(engine, f"p{index}", prompt, 0.0)
    tokens, finished = drain(engine, 0.0)
    again = [*prompts[4:8], *prompts[:4]]
    for index, prompt in enumerate(again):
        submit(engine, f"again{index}", prompt, 1e5)
    more_tokens, more_finished = drain(engine, 1e5)
    report = engine.report(2e5)
    assert sum(call.cached_tokens for call in (*finished.values(), *more_finished.values())) > 0
    assert (report.evicted_tokens > 0) == (num_blocks < 400)
    for index, prompt in enumerate(prompts):
        assert tokens[f"p{index}"] == alone(prompt)
    for index, prompt in enumerate(again):
        assert more_tokens[f"again{index}"] == alone(prompt)


def test_a_growing_conversation_reuses_what_it_computed() -> None:
    engine, prompt = engine_of(100, chunk_tokens=16), random_prompts(1, seed=3)[0]
    held = 0
    for turn in range(4):
        submit(engine, f"p/{turn}", prompt, float(turn))
        tokens, finished = drain(engine, float(turn))
        answer = tokens[f"p/{turn}"]
        assert answer == alone(prompt)
        assert finished[f"p/{turn}"].cached_tokens == held // BLOCK * BLOCK
        held = len(prompt) + len(answer) - 1
        prompt = [*prompt, *answer, turn, turn + 1, turn + 2]


def test_retained_kv_is_reused_and_correct_after_others_needed_room() -> None:
    keep, *others = random_prompts(6, seed=9)
    engine = engine_of(60, chunk_tokens=32)
    submit(engine, "keep/0", keep, 0.0)
    answer = drain(engine, 0.0)[0]["keep/0"]
    worth = (Worth(until_s=1e9, value=9.0),)
    segment = Segment(start_tokens=0, end_tokens=256, device=worth)
    order = Retain(
        cause=1, epoch=1, seq=1, program="keep", engine="e", segments=(segment,), lease_until_s=1e9
    )
    engine.order([order], 1.0)
    for index, prompt in enumerate(others):
        submit(engine, f"other{index}", [index, *prompt], 2.0 + index * 1e4)
        drain(engine, 2.0 + index * 1e4)
    longer = [*keep, *answer, 1, 2, 3]
    submit(engine, "keep/1", longer, 1e6)
    tokens, finished = drain(engine, 1e6)
    assert finished["keep/1"].cached_tokens == (len(keep) + len(answer) - 1) // BLOCK * BLOCK
    assert tokens["keep/1"] == alone(longer)


def test_a_call_whose_scores_are_not_finite_fails_alone() -> None:
    tensors = random_tensors(SPEC, 5)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][3] = float("nan")
    executor = TorchExecutor(Llama(SPEC, tensors, torch.float32), num_blocks=60, block_tokens=BLOCK)
    engine = BatchingEngine(executor, "embedded")
    prompts = [[token for token in prompt if token != 3] for prompt in random_prompts(3, seed=4)]
    submit(engine, "good", prompts[0], 0.0)
    submit(engine, "bad", [*prompts[0][:20], 3, *prompts[1]], 0.0)
    aborted: list[CallAborted] = []
    tokens: list[int] = []
    while engine.has_work:
        for output in engine.step(0.0)[1]:
            if isinstance(output, CallAborted):
                aborted.append(output)
            elif isinstance(output, TokensOut):
                assert output.call == "good"
                tokens += output.tokens
        engine.check_invariants()
    assert [(end.call, end.reason) for end in aborted] == [("bad", "the model's logits are not finite")]
    assert tokens == alone(prompts[0])
    # What the failed call left behind is no cache; what both had is.
    submit(engine, "again", [*prompts[0], *prompts[1]], 1.0)
    assert drain(engine, 1.0)[0]["again"] == alone([*prompts[0], *prompts[1]])


# Recorded answers, and the engine as a process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_model(tmp_path_factory.mktemp("models"), progress=lambda line: None, preset="tiny")


def process_of(folder: Path, *more: str) -> EngineProcess:
    argv = [sys.executable, "-m", "agentsched.engines.embedded", "--model", str(folder), *more]
    return EngineProcess("e0", argv)


async def generate(engine: EngineProcess, request: GenerateRequest) -> tuple[list[int], CallFinished, int]:
    tokens: list[int] = []
    first = 0
    finished: CallFinished | None = None
    async for item in engine.generate(request):
        match item:
            case TokensOut(tokens=more):
                tokens += more
            case FirstToken():
                first += 1
            case CallFinished():
                finished = item
            case _:
                pass
    assert finished is not None
    return tokens, finished, first


async def test_a_process_replays_a_recorded_agent_from_its_own_kv(folder: Path) -> None:
    turns = [RecordedTurn(thought=f"Step {n}.", command=f"echo {n}") for n in range(3)]
    frontend = ChatFrontend(folder, scripts={"fix": turns})
    engine = process_of(folder, "--kv-tokens", "4096", "--chunk-tokens", "64")
    await engine.start()
    try:
        assert engine.capabilities.kind == "embedded"
        assert engine.capabilities.capacity_tokens == 4096
        messages: list[dict[str, Any]] = [{"role": "user", "content": "Repair it. " * 20}]
        held = 0
        for turn in range(3):
            prepared = frontend.prepare(ChatRequest(model="recorded/fix", messages=messages))
            assert prepared.recorded is not None
            request = GenerateRequest(
                call=f"c{turn}",
                program="p",
                prompt=prepared.prompt,
                sampling=prepared.sampling,
                recorded=prepared.recorded,
            )
            tokens, finished, first = await generate(engine, request)
            assert (tokens, first) == (prepared.recorded, 1)
            assert finished.cached_tokens == held // 16 * 16
            assert finished.recomputed_tokens == 0
            held = len(prepared.prompt) + len(tokens) - 1
            decoder = frontend.decoder(prepared)
            delta = decoder.feed(tokens)
            [call] = (*delta.tool_calls, *decoder.finish().tool_calls)
            function = {"name": call.name, "arguments": call.arguments}
            messages += [
                {
                    "role": "assistant",
                    "content": delta.text,
                    "tool_calls": [{"id": "x", "function": function}],
                },
                {"role": "tool", "content": str(turn) * 40},
            ]
    finally:
        await engine.close()


async def test_a_model_that_cannot_be_served_ends_the_process_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(EngineGone, match="model_type 'gpt2' is not served"):
        await process_of(tmp_path, "--kv-tokens", "4096").start()


def test_the_text_side_needs_no_torch() -> None:
    code = (
        "import sys, agentsched.engines.embedded.frontend;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
