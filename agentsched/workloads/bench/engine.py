"""The embedded engine on this CPU against others with the same model, prompts and threads.

Each contender is a process that loads the model once; in every repeat they take turns on the same fresh
prompts, so that a ratio is taken between neighbours in time, on a machine that others may use too. Against
the hardware: prefill as a share of the matrix products that the machine does in a second, decode as a share
of the bytes that it reads (each step reads all weights and all KV once).

Threads are bound to cores for all alike. SGLang's CPU form is a contender if ``--sglang`` names a virtual
environment in which it imports; it runs in fp32 with torch's attention.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentsched.workloads.bench import _found

OUT = Path("out/bench/engine.json")
BATCH = 8
FOLDER = Path(__file__).parent

# 32M and 430M parameters.
SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 16384,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
MEDIUM: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
TINY = SMALL | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}

PREFILL_PATIENCE_S = 30.0
"""A prefill that would take longer at the measured rate is made of shorter prompts."""


@dataclass(frozen=True)
class Case:
    """One model, one length of prompts, one number of threads."""

    name: str
    config: dict[str, Any]
    prompt_tokens: int
    steps: int
    threads: int
    repeats: int
    contenders: tuple[str, ...]
    shorter_tokens: int = 0
    """The prompts' length where this machine is too slow for longer ones."""


@dataclass
class Result:
    """What came of a case: seconds by contender and figure, one a repeat; the machine's limits."""

    case: Case
    prompt_tokens: int
    limits: dict[str, float]
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def seconds(self, contender: str, figure: str) -> float | None:
        values = self.figures.get(contender, {}).get(figure)
        return statistics.median(values) if values else None

    def ratios(self, other: str, figure: str) -> list[float]:
        """How many times as fast we are, repeat by repeat."""
        mine, theirs = (self.figures.get(name, {}).get(figure, []) for name in ("ours", other))
        return [b / a for a, b in zip(mine, theirs, strict=True)] if theirs else []

    def shares(self) -> dict[str, float]:
        """Of the machine's limits, by our medians."""
        prefill, step = self.seconds("ours", "prefill_s"), self.seconds("ours", "step_s")
        assert prefill is not None
        assert step is not None
        weights, layer_weights = _weights(self.case.config)
        tokens, config = self.prompt_tokens, self.case.config
        size = 2 if config["dtype"] == "bfloat16" else 4
        attention = (
            2 * config["num_hidden_layers"] * config["num_attention_heads"] * config["head_dim"] * tokens
        )
        flops = BATCH * tokens * (2 * layer_weights + attention)
        kv_width = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
        context = tokens + self.case.steps / 2
        read = size * (weights + BATCH * context * kv_width)
        return {
            "prefill_of_matmul": flops / prefill / self.limits["matmul_flops"],
            "decode_of_bandwidth": read / step / self.limits["read_bytes"],
        }


def _weights(config: dict[str, Any]) -> tuple[int, int]:
    """Numbers in all matrices that a decode step reads, and in those of the layers."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    layers = config["num_hidden_layers"] * hidden * (dim * (2 * heads + 2 * kv_heads) + 3 * inner)
    return layers + hidden * config["vocab_size"], layers


class Contender:
    """A process that computes what it is told."""

    def __init__(self, command: list[str], threads: int, log: Path) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "OMP_PROC_BIND": "true",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "SGLANG_USE_CPU_ENGINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self._log = log
        with log.open("w") as complaints:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),  # some choose their threads themselves
            )
        self.hello = self._answer()

    def ask(self, order: dict[str, Any]) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@@"):
                answer: dict[str, float] = json.loads(line[2:])
                return answer
        tail = self._log.read_text(errors="replace").strip().splitlines()[-5:]
        raise click.ClickException("a contender ended:\n" + "\n".join(tail))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def _contenders(case: Case, folder: Path, sglang: Path | None) -> Iterator[dict[str, Contender]]:
    kv_tokens = (BATCH + 1) * (case.prompt_tokens + case.steps + 64)
    with ExitStack() as stack:
        found: dict[str, Contender] = {}
        for name in case.contenders:
            if name == "sglang":
                if sglang is None:
                    continue
                # -P: else sglang.py beside that file would stand before the package of that name
                python = [str(sglang / "bin" / "python"), "-P", str(FOLDER / "_sglang.py")]
                command = [*python, str(folder), str(kv_tokens)]
            else:
                module = f"{__package__}._contenders"
                command = [sys.executable, "-m", module, name, str(folder), str(case.threads), str(kv_tokens)]
            found[name] = Contender(command, case.threads, folder / f"{name}.log")
            stack.callback(found[name].close)
        yield found


def measure(case: Case, sglang: Path | None, say: Callable[[str], None]) -> Result:
    with tempfile.TemporaryDirectory(prefix="agentsched-bench-") as path:
        folder = Path(path)
        _write_model(folder, case.config)
        with _contenders(case, folder, sglang) as contenders:
            limits = contenders["ours"].hello
            tokens, (_, weights) = case.prompt_tokens, _weights(case.config)
            if (
                case.shorter_tokens
                and 2 * weights * BATCH * tokens > PREFILL_PATIENCE_S * limits["own_type_flops"]
            ):
                tokens = case.shorter_tokens
            result = Result(case, tokens, limits)
            for repeat in range(case.repeats):
                random = Random(f"{case.name}/{repeat}")
                vocabulary = case.config["vocab_size"]
                prompts = [[random.randrange(1, vocabulary) for _ in range(tokens)] for _ in range(BATCH)]
                for name, contender in contenders.items():
                    begin = time.perf_counter()
                    answer = contender.ask({"prompts": prompts, "steps": case.steps})
                    for figure, seconds in answer.items():
                        result.figures.setdefault(name, {}).setdefault(figure, []).append(seconds)
                    told = ", ".join(f"{figure} {seconds:.4g}" for figure, seconds in answer.items())
                    took_s = time.perf_counter() - begin
                    say(f"{case.name} x{case.threads}, repeat {repeat + 1}, {name}: {told} ({took_s:.0f} s)")
    return result


def _write_model(folder: Path, config: dict[str, Any]) -> None:
    told = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "random_weights_seed": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(told))
    subprocess.run([sys.executable, "-m", f"{__package__}._contenders", "make", str(folder)], check=True)


def cases(quick: bool) -> list[Case]:
    everyone = ("ours", "generate", "sglang")
    if quick:
        return [Case("tiny 64", TINY, 64, 4, 2, 1, (*everyone, "ours-torch"))]
    return [
        Case("S 1k", SMALL, 1024, 32, 2, 3, (*everyone, "ours-torch")),
        Case("S 1k", SMALL, 1024, 24, 1, 2, everyone),
        Case("S 4k", SMALL, 4096, 16, 2, 2, everyone),
        Case("S 1k, continuous batching", SMALL, 1024, 8, 2, 1, ("ours", "generate-batch")),
        Case("M bf16", MEDIUM, 512, 8, 2, 2, ("ours", "generate"), shorter_tokens=64),
    ]


Goal = dict[str, float | bool]


def goals(results: list[Result]) -> dict[str, Goal]:
    """Those of our aims for two threads that these results can show."""
    by_name = {result.case.name: result for result in results if result.case.threads == 2}
    found: dict[str, Goal] = {}

    def at_least(name: str, value: float | None, want: float) -> None:
        if value is not None:
            found[name] = {"value": round(value, 3), "want": want, "met": value >= want}

    def faster(case: str, other: str, figure: str, want: float) -> None:
        ratios = by_name[case].ratios(other, figure) if case in by_name else []
        what = {"step_s": "decode", "prefill_s": "prefill", "warm_s": "cached prompts answered"}[figure]
        at_least(f"{what}, {case}, over {other}", statistics.median(ratios) if ratios else None, want)

    faster("S 1k", "generate", "step_s", 1.3)
    faster("S 1k", "sglang", "step_s", 1.8)
    faster("S 4k", "generate", "step_s", 3.0)
    faster("S 4k", "sglang", "step_s", 3.0)
    for other in ("generate", "sglang"):
        faster("S 1k", other, "prefill_s", 1.1)
    faster("M bf16", "generate", "step_s", 2.5)
    faster("S 1k", "sglang", "warm_s", 10.0)
    if "S 1k" in by_name:
        small = by_name["S 1k"]
        rest = small.seconds("ours", "rest_s")
        if rest is not None:
            ms = 1000 * rest
            found["all but attention and matmul, ms a step (at most)"] = {
                "value": round(ms, 3),
                "want": 2.5,
                "met": ms <= 2.5,
            }
        stretch = {"S 1k": 2.2, "S 4k": 6.0}
        for case, want in stretch.items():
            ratios = by_name[case].ratios("generate", "step_s") if case in by_name else []
            value = statistics.median(ratios) if ratios else None
            at_least(f"stretch: decode, {case}, over generate", value, want)
        at_least("stretch: decode's share of memory bandwidth", small.shares()["decode_of_bandwidth"], 0.35)
    return found


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _table(results: list[Result]) -> Table:
    table = Table(
        "case", "threads", "contender", "prefill tok/s", "we, times", "decode tok/s", "we, times", "cached, s"
    )
    for result in results:
        for name in result.figures:
            prefill, step = result.seconds(name, "prefill_s"), result.seconds(name, "step_s")
            assert prefill is not None
            assert step is not None
            warm = result.seconds(name, "warm_s")
            ours = name == "ours"
            table.add_row(
                f"{result.case.name} ({result.prompt_tokens})",
                str(result.case.threads),
                name,
                f"{BATCH * result.prompt_tokens / prefill:,.0f}",
                "" if ours else _spread(result.ratios(name, "prefill_s")),
                f"{BATCH / step:,.0f}",
                "" if ours else _spread(result.ratios(name, "step_s")),
                "" if warm is None else f"{warm:.3f}",
            )
    return table


def _told(result: Result) -> dict[str, Any]:
    case = result.case
    return {
        "case": case.name,
        "threads": case.threads,
        "prompt_tokens": result.prompt_tokens,
        "batch": BATCH,
        "steps": case.steps,
        "config": case.config,
        "limits": result.limits,
        "shares": result.shares(),
        "seconds": result.figures,
    }


@click.command()
@click.option("--quick", is_flag=True, help="A tiny model: only shows that it works.")
@click.option(
    "--sglang",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A virtual environment in which SGLang imports on this CPU.",
)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, show_default=True)
def main(quick: bool, sglang: Path | None, out: Path) -> None:
    """The embedded engine against transformers, SGLang and the hardware, on this CPU."""
    console, progress = Console(), Console(stderr=True)
    venv = sglang and sglang.absolute()
    results = [measure(case, venv, lambda line: progress.print(line, style="dim")) for case in cases(quick)]
    reached = goals(results)
    console.print(_table(results))
    for result in results:
        shares = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in result.shares().items())
        console.print(f"{result.case.name}, {result.case.threads} threads: {shares}")
    _found.tell(reached, console)
    if sglang is None:
        console.print("SGLang did not take part: name its virtual environment by --sglang")
    found = {"results": [_told(result) for result in results], "goals": reached}
    _found.keep(_found.headed("engine", found), out, console)


if __name__ == "__main__":
    main()
