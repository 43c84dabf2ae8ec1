"""SGLang's CPU form in ``scripts/bench engine``: run by path, in a virtual environment of its own.

Speaks what ``_contenders.py`` speaks. fp32 through torch's own attention: without the matrix instructions
of some CPUs it has no other kernels.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any


def main() -> None:
    folder, kv_tokens = sys.argv[1], int(sys.argv[2])
    engine: Any = importlib.import_module("sglang").Engine(
        model_path=folder,
        device="cpu",
        dtype="float32",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        grammar_backend="none",
        disable_overlap_schedule=True,
        disable_cuda_graph=True,
        skip_server_warmup=True,
        skip_tokenizer_init=True,
        max_total_tokens=kv_tokens,
        max_running_requests=8,
        chunked_prefill_size=2048,
        mem_fraction_static=0.5,
        log_level="error",
    )

    def seconds(prompts: list[list[int]], tokens: int) -> float:
        begin = time.perf_counter()
        sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
        engine.generate(input_ids=prompts, sampling_params=sampling)
        return time.perf_counter() - begin

    seconds([[1, 2, 3]], 2)
    print("@@{}", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        prompts, steps = command["prompts"], command["steps"]
        prefill = seconds(prompts, 1)
        warm = seconds(prompts, 1)
        step = (seconds(prompts, 1 + steps) - warm) / steps
        print("@@" + json.dumps({"prefill_s": prefill, "step_s": step, "warm_s": warm}), flush=True)
    engine.shutdown()


# Its scheduler is a process that imports this file again.
if __name__ == "__main__":
    main()
