"""The embedded engine on one GPU, against what the GPU can do. Not run on one yet.

An 8B Llama-shaped model in bf16 with random weights. Decode at batch 64, context 4k, as a share of the
memory bandwidth (a step reads all weights and all KV once), prefill as a share of matrix products, and
how much of a decode step the GPU waits for the host. Then 32k tokens are brought up from host memory, and
agents are replayed as by ``scripts/bench replay``. Needs torch with CUDA, triton, transformers, msgspec and
this repository, and what those bring with them (numpy, safetensors, tokenizers, networkx): ``python -m
agentsched.workloads.bench.engine_gpu`` where the checkout's own environment has a CPU build of torch.

``--device cpu --tiny`` takes the same path through Triton's interpreter: it shows that it runs, nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentsched.workloads.bench import _promotion as promotion
from agentsched.workloads.bench._replay import MEASURES, Plan, replay_on, spread

if TYPE_CHECKING:
    import torch

    from agentsched.engines.embedded.executor import TorchExecutor

RESULTS = Path(__file__).parents[1] / "results"
BLOCK = 16

LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 36864,
}
TINY = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Load:
    batch: int
    context: int
    steps: int
    prompt: int
    chunk: int


FULL, SMALL = Load(64, 4096, 64, 8192, 2048), Load(2, 20, 1, 24, 16)
PROMOTED = promotion.Load(
    tokens=32768, rows=16, row_tokens=2048, filler_tokens=4096, quiet_steps=32, rounds=3, chunk_tokens=2048
)
PROMOTED_SMALL = promotion.Load(
    tokens=32, rows=1, row_tokens=16, filler_tokens=96, quiet_steps=1, rounds=1, chunk_tokens=96
)
PLAN = Plan(
    programs=24, concurrency=12, token_divisor=16.0, gap_divisor=12.0, chunk_tokens=2048, seconds=150.0
)
PLAN_SMALL = Plan(
    trace="gen:continuum-swe?turns=2&turns_sd=0.1&programs=4",
    programs=4,
    concurrency=3,
    token_divisor=2000.0,
    pressure=0.6,
    repeats=1,
    chunk_tokens=16,
    measured_rows=(1,),
    measured_rounds=1,
)


@dataclass(frozen=True)
class _Row:
    """As much of a row as a batch is made of."""

    call: str
    tokens: list[int]
    start: int
    blocks: list[int]
    sampling: object = True


class _Random(Mapping[str, "torch.Tensor"]):
    """Weights made where and when they are asked for: an 8B model does not pass through the host."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> None:
        self._shapes, self._device, self._dtype = shapes, device, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, device=self._device, dtype=self._dtype)
        return torch.randn(shape, device=self._device, dtype=self._dtype) * 0.02

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class Machine:
    """The model on its device, KV for a load, and a clock that waits for the device."""

    def __init__(self, config: dict[str, Any], load: Load, device: str) -> None:
        import torch
        from transformers import LlamaConfig

        from agentsched.engines.embedded.batch import Batch, Batcher
        from agentsched.engines.embedded.graphs import DecodeGraphs
        from agentsched.engines.embedded.model import Llama
        from agentsched.engines.embedded.ops import ops_for
        from agentsched.engines.embedded.spec import ModelSpec
        from agentsched.engines.embedded.weights import tensor_shapes

        self.device = torch.device(device)
        # Triton's interpreter does not multiply bf16.
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        spec = ModelSpec.of(LlamaConfig(**config, tie_word_embeddings=False))
        shapes = tensor_shapes(spec)
        model = self.model = Llama(spec, _Random(shapes, self.device, dtype), dtype, device)
        ops = ops_for(spec, dtype, self.device, kernels="triton")
        self.size = dtype.itemsize
        self.kv_bytes = 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize
        self.weights = sum(rows * columns for rows, columns in (s for s in shapes.values() if len(s) == 2))
        self.weights -= spec.vocabulary * spec.hidden  # of the embedding a row a token is read
        self.layer_weights = self.weights - spec.vocabulary * spec.hidden
        self.spec, self.load = spec, self._fit(load)
        sequence = max(self.load.context + self.load.steps + 8, self.load.prompt)
        self._table = -(-sequence // BLOCK)
        blocks = self.load.batch * self._table
        shape = ((blocks + 1) * BLOCK, spec.kv_heads, spec.head_dim)
        pools = [
            tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in "kv") for _ in range(spec.layers)
        ]

        def forward(batch: Batch) -> torch.Tensor:
            return model.logits(model.forward(batch, pools, ops), ops)  # type: ignore[arg-type]

        self._forward, self._batcher = forward, Batcher(BLOCK, self.device)
        self.graphs = DecodeGraphs(
            forward, spare=blocks, table_blocks=self._table, block_tokens=BLOCK, device=self.device
        )

    def _fit(self, load: Load) -> Load:
        """As many sequences as there is memory for."""
        import torch

        if self.device.type != "cuda":
            return load
        free, _ = torch.cuda.mem_get_info()
        fits = int(0.9 * free / self.kv_bytes / max(load.context + load.steps + 24, load.prompt))
        if fits < 1:
            raise SystemExit("the model fits on this GPU, but no KV beside it")
        return Load(min(load.batch, fits), load.context, load.steps, load.prompt, load.chunk)

    def _rows(self, step: int) -> list[Any]:
        at, width = self.load.context + step, self._table
        return [
            _Row(str(row), [1 + row], at, list(range(row * width, (row + 1) * width)))
            for row in range(self.load.batch)
        ]

    def decode(self) -> tuple[float, float]:
        """Seconds a step, host included, and seconds that the device computes of it."""
        rows = [self._rows(step) for step in range(self.load.steps)]
        for row in rows[:1]:
            self._step(row)
        self.wait()
        begin = time.perf_counter()
        for row in rows:
            self._step(row)
        whole = (time.perf_counter() - begin) / len(rows)
        batch = self._batcher.batch(rows[0])

        def replay() -> torch.Tensor:
            return self.graphs.run(batch).argmax(-1)

        return whole, self.timed(replay, len(rows))

    def _step(self, rows: list[Any]) -> list[int]:
        """What the executor does of a step: the next tokens must be with the host."""
        tokens: list[int] = self.graphs.run(self._batcher.batch(rows)).argmax(-1).tolist()
        return tokens

    def prefill(self) -> float:
        """Seconds of one prompt in chunks."""
        prompt, chunk = self.load.prompt, self.load.chunk
        blocks = list(range(self._table))
        batches = [
            self._batcher.batch([_Row("p", [7] * min(chunk, prompt - at), at, blocks)])  # type: ignore[list-item]
            for at in range(0, prompt, chunk)
        ]

        def run() -> None:
            for batch in batches:
                self._forward(batch)

        return self.timed(run, 3 if self.device.type == "cuda" else 1)

    def limits(self, tiny: bool) -> tuple[float, float]:
        """Operations of bf16 products a second; bytes moved a second."""
        import torch

        size = 256 if tiny else 8192
        a = torch.randn(size, size, device=self.device, dtype=torch.bfloat16)
        moved = torch.zeros(size * size * (1 if tiny else 16), device=self.device, dtype=torch.bfloat16)
        target = torch.empty_like(moved)
        flops = 2 * size**3 / self.timed(lambda: a @ a, 10)
        return flops, 2 * moved.nbytes / self.timed(lambda: target.copy_(moved), 10)

    def timed(self, run: Callable[[], object], repeats: int) -> float:
        """Seconds of the device for one run, launched one after the other."""
        run()
        self.wait()
        begin = time.perf_counter()
        for _ in range(repeats):
            run()
        self.wait()
        return (time.perf_counter() - begin) / repeats

    def wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Engines:
    """The machine's model over any KV, as the engine serves it. What the machine held beside it must go."""

    def __init__(self, machine: Machine) -> None:
        self._model, self._token_bytes = machine.model, machine.kv_bytes
        self.max_context_tokens = machine.spec.max_context_tokens

    def executor(self, kv_tokens: int) -> TorchExecutor:
        """``kernels`` are Triton's on a CPU too, and the padding of decode steps is there."""
        import torch

        from agentsched.engines.embedded.executor import TorchExecutor

        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            if kv_tokens * self._token_bytes > 0.9 * free:
                raise SystemExit(f"this GPU has no room for {kv_tokens:,} tokens of KV beside the model")
        return TorchExecutor(self._model, num_blocks=-(-kv_tokens // BLOCK), kernels="triton", graphs=True)


def serve(engines: Engines, tiny: bool) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Figures, goals and lines for people of what the engine does as a whole."""
    load, plan = (PROMOTED_SMALL, PLAN_SMALL) if tiny else (PROMOTED, PLAN)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    promoted = promotion.promote(engines.executor(load.kv_tokens), load, say)
    replayed = replay_on(plan, engines.max_context_tokens, engines.executor, say)
    lines = [
        *promoted.lines(),
        f"replay of {plan.trace}, tokens divided by {plan.token_divisor:g} and gaps by {plan.gap_divisor:g}, "
        f"pressure {plan.pressure:g}, {replayed.kv_tokens:,} tokens of KV:",
        *(
            f"  {policy}: {name} {spread([value(run) for run in runs])}"
            for policy, runs in replayed.measured.items()
            for name, value in MEASURES.items()
        ),
        *replayed.lines(),
    ]
    figures = {"promotion": promoted.figures(), "replay": replayed.figures()}
    return figures, promoted.goals() | replayed.goals(), lines


def measure(machine: Machine, tiny: bool) -> dict[str, float]:
    import torch

    with torch.inference_mode():
        flops, bandwidth = machine.limits(tiny)
        step, busy = machine.decode()
        prefill = machine.prefill()
    load, spec = machine.load, machine.spec
    read = machine.size * machine.weights + load.batch * (load.context + load.steps / 2) * machine.kv_bytes
    attention = 2 * spec.layers * spec.heads * spec.head_dim * load.prompt
    work = load.prompt * (2 * machine.layer_weights + attention)
    return {
        "matmul_tflops": flops / 1e12,
        "bandwidth_gb_s": bandwidth / 1e9,
        "decode_batch": load.batch,
        "decode_context_tokens": load.context,
        "decode_step_ms": 1000 * step,
        "decode_tokens_s": load.batch / step,
        "decode_of_bandwidth": read / step / bandwidth,
        "between_steps": 1 - busy / step,
        "prefill_tokens_s": load.prompt / prefill,
        "prefill_of_matmul": work / prefill / flops,
    }


def goals(figures: dict[str, float]) -> dict[str, dict[str, float | bool]]:
    at_least = {"decode_of_bandwidth": 0.6, "prefill_of_matmul": 0.5}
    found: dict[str, dict[str, float | bool]] = {
        name: {"value": figures[name], "want": want, "met": figures[name] >= want}
        for name, want in at_least.items()
    }
    between = figures["between_steps"]
    found["between_steps (at most)"] = {"value": between, "want": 0.05, "met": between <= 0.05}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench engine-gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: only shows that it works")
    parser.add_argument("--out", type=Path, default=None, help="by default the package's results/<gpu>.json")
    options = parser.parse_args()
    began_s = time.perf_counter()
    if options.device == "cpu":
        if not options.tiny:
            parser.error("--device cpu goes with --tiny alone: figures of a GPU come from a GPU")
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "scripts/bench engine-gpu: torch finds no GPU here; --device cpu --tiny tries the path",
            file=sys.stderr,
        )
        sys.exit(2)
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else "cpu-tiny"
    config, load = (TINY, SMALL) if options.tiny else (LLAMA_8B, FULL)
    machine = Machine(config, load, options.device)
    figures = measure(machine, options.tiny)
    reached, engines = goals(figures), Engines(machine)
    del machine
    served, more, lines = serve(engines, options.tiny)
    told = {
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join(["scripts/bench engine-gpu", *sys.argv[1:]]),
        "seconds": time.perf_counter() - began_s,
        "figures": figures | served,
        "goals": {} if options.tiny else reached | more,
    }
    for name, figure in figures.items():
        print(f"{name}: {figure:,.4g}")
    print("\n".join(lines))
    for name, goal in told["goals"].items():  # type: ignore[attr-defined]
        print(f"{'met' if goal['met'] else 'NOT MET'}: {name}: {goal['value']:.3f} (wanted {goal['want']})")
    print(f"{told['seconds']:.0f} s in all")
    if options.tiny and options.out is None:
        return
    out = options.out or RESULTS / f"{re.sub('[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
