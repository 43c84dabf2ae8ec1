"""Who competes in ``scripts/bench engine``, each in a process of its own that takes orders by line.

An order is JSON: ``{"prompts": [[token]], "steps": n}`` has eight prompts computed and n tokens more decoded
for each; the answer is ``@@`` and JSON: seconds to the first tokens of all, seconds a decode step, and, where
there is a prefix cache, seconds to the first tokens of the same prompts a second time.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from agentsched.core.events import FirstToken
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import GenerateRequest, Sampling
from agentsched.engines.embedded.__main__ import load_executor
from agentsched.engines.embedded.ops import KernelOps, Linear, Pool, TorchOps
from agentsched.engines.embedded.spec import load_spec
from agentsched.engines.embedded.weights import random_tensors

Answer = dict[str, float]
Order = dict[str, Any]


class Ours:
    """The embedded engine, from submission to the last token. ``kernels`` "torch": without our kernels."""

    def __init__(self, folder: Path, threads: int, kv_tokens: int, *, kernels: str) -> None:
        self._executor = load_executor(folder, kv_tokens, threads=threads, kernels=kernels)
        self._engine = BatchingEngine(self._executor, "bench")
        self._threads, self._calls = threads, 0
        self._serve([[1, 2, 3]], 2)

    def __call__(self, order: Order) -> Answer:
        prompts, steps = order["prompts"], order["steps"]
        prefill, _ = self._serve(prompts, 1)
        warm, step = self._serve(prompts, 1 + steps)
        answer = {"prefill_s": prefill, "warm_s": warm, "step_s": step}
        if isinstance(self._executor.ops, KernelOps):
            answer["rest_s"] = self._rest(prompts, steps)
        return answer

    def limits(self) -> Answer:
        """What the machine does at best: multiplications and additions a second, bytes read a second."""
        matrix, memory = torch.randn(1024, 1024), torch.zeros(1 << 27)
        own, fp32 = (
            2 * 1024**3 / _best(functools.partial(F.linear, matrix.to(dtype), matrix.to(dtype)))
            for dtype in (self._executor.dtype, torch.float32)
        )
        # Where bf16 is slow, its products are better done in fp32.
        return {
            "own_type_flops": own,
            "matmul_flops": max(own, fp32),
            "read_bytes": memory.nbytes / _best(lambda: memory.sum()),
        }

    def _serve(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds until all have their first token, and seconds a step after that."""
        begin, first, waiting, steps = time.perf_counter(), 0.0, len(prompts), 0
        for prompt in prompts:
            self._calls += 1
            name = f"c{self._calls}"
            sampling = Sampling(max_output_tokens=tokens)
            request = GenerateRequest(call=name, program=name, prompt=prompt, sampling=sampling)
            self._engine.submit(request, begin)
        while self._engine.has_work:
            _, outputs = self._engine.step(time.perf_counter())
            steps += not waiting
            waiting -= sum(isinstance(output, FirstToken) for output in outputs)
            if not waiting and not first:
                first = time.perf_counter()
        return first - begin, (time.perf_counter() - first) / max(1, steps)

    def _rest(self, prompts: list[list[int]], steps: int) -> float:
        """Seconds a step with matrix products and attention switched off."""
        ops = self._executor.ops
        self._executor.ops = _Hollow(ops)
        try:
            return self._serve(prompts, 1 + steps)[1]
        finally:
            self._executor.ops = ops


class _Hollow(TorchOps):
    """All parts of a layer but matrix products and attention."""

    def __init__(self, ops: TorchOps) -> None:
        self.spec = ops.spec
        self.add_norm, self.gate, self.rotate_store = ops.add_norm, ops.gate, ops.rotate_store  # type: ignore[method-assign]

    def linear(self, x: torch.Tensor, linear: Linear) -> torch.Tensor:
        return x.new_zeros(len(x), len(linear.weight))

    def attend(self, qkv: torch.Tensor, pool: Pool, batch: object) -> torch.Tensor:
        return qkv.new_zeros(len(qkv), self.spec.heads * self.spec.head_dim)


class _Clock(StoppingCriteria):
    """Never stops; keeps when each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Generate:
    """transformers' own ``generate``: one padded batch."""

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")

    def __call__(self, order: Order) -> Answer:
        ids, clock, tokens = torch.tensor(order["prompts"]), _Clock(), 1 + order["steps"]
        begin = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                stopping_criteria=[clock],
            )
        first, last = clock.times[0], clock.times[-1]
        return {"prefill_s": first - begin, "step_s": (last - first) / order["steps"]}


class GenerateBatch:
    """transformers' continuous batching, with its paged attention over torch's SDPA."""

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self._model.set_attn_implementation("paged|sdpa")

    def __call__(self, order: Order) -> Answer:
        begin = time.perf_counter()
        done = self._model.generate_batch(
            inputs=order["prompts"],
            generation_config=cast(Any, GenerationConfig)(
                max_new_tokens=1 + order["steps"], do_sample=False, eos_token_id=-1
            ),
            continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=0.1, use_cuda_graph=False),
            record_timestamps=True,
            warmup=False,
        )
        times = [output.timestamps for output in done.values()]
        first, last = max(time[0] for time in times), max(time[-1] for time in times)
        return {"prefill_s": first - begin, "step_s": (last - first) / order["steps"]}


def _best(run: Callable[[], object]) -> float:
    """The least of some: what the machine can do, when nobody disturbs it."""
    run()
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def make(folder: Path) -> None:
    """Random weights beside ``config.json``, for all contenders to load."""
    spec = load_spec(folder)
    tensors = {name: tensor.to(spec.dtype) for name, tensor in random_tensors(spec, 0).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "make":
        make(folder)
        return
    threads, kv_tokens = int(sys.argv[3]), int(sys.argv[4])
    contender: Callable[[Order], Answer]
    if kind in ("ours", "ours-torch"):
        contender = Ours(folder, threads, kv_tokens, kernels="auto" if kind == "ours" else "torch")
        print("@@" + json.dumps(contender.limits()), flush=True)
    else:
        contender = Generate(folder, threads) if kind == "generate" else GenerateBatch(folder, threads)
        print("@@{}", flush=True)
    for line in sys.stdin:
        print("@@" + json.dumps(contender(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
