"""The embedded engine as a process: ``python -m agentsched.engines.embedded --model FOLDER --fd N``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import Sampling
from agentsched.engines.embedded.executor import TorchExecutor
from agentsched.engines.embedded.grammar import Grammars
from agentsched.engines.embedded.memory import check_memory, token_bytes
from agentsched.engines.embedded.model import Llama
from agentsched.engines.embedded.preset import TOKENIZER
from agentsched.engines.embedded.sampling import Sampler
from agentsched.engines.embedded.spec import DTYPES, ModelError, ModelSpec, load_spec
from agentsched.engines.embedded.tokens import ModelTokenizer
from agentsched.engines.embedded.transfer import HostMemory
from agentsched.engines.embedded.weights import load_tensors
from agentsched.engines.execution import Row
from agentsched.engines.process import host

KIND = "embedded"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def load_executor(
    folder: Path,
    kv_tokens: int,
    *,
    block_tokens: int = 16,
    threads: int = 1,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    kernels: str = "auto",
) -> TorchExecutor:
    """The folder's model over ``kv_tokens`` of KV, rounded down to whole blocks.

    ``dtype`` is the config's own by default, ``device`` a GPU where there is one; ``kernels`` as in
    ``ops.py``. Raises ``ModelError``; ``ValueError`` for bad numbers.
    """
    if block_tokens < 1:
        raise ValueError(f"block_tokens must be >= 1, got {block_tokens}")
    spec = load_spec(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    need_bytes = kv_tokens * token_bytes(spec, dtype or spec.dtype)
    if device == "cpu":
        check_memory(need_bytes, f"KV of {kv_tokens:,} tokens", "ask for fewer (--kv-tokens)")
    model = Llama(spec, load_tensors(folder, spec), dtype or spec.dtype, device)
    num_blocks = kv_tokens // block_tokens
    return TorchExecutor(
        model,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        threads=threads,
        sampler=_sampler(folder, spec),
        kernels=kernels,
    )


def _sampler(folder: Path, spec: ModelSpec) -> Sampler:
    """A folder without a tokenizer is served to those who speak tokens, without grammars."""
    if not (folder / TOKENIZER).exists():
        return Sampler()
    try:
        return Sampler(Grammars(ModelTokenizer(folder), spec.vocabulary))
    except (OSError, ValueError) as error:
        raise ModelError(str(error)) from error


def load_host_tier(executor: TorchExecutor, host_tokens: int) -> HostMemory | None:
    """A host tier of so many tokens for the executor, rounded down to whole blocks; None for none.

    Raises ``ValueError`` for a negative number, and where there is no memory for so many.
    """
    if host_tokens < 0:
        raise ValueError(f"host_tokens must be >= 0, got {host_tokens}")
    blocks = host_tokens // executor.block_tokens
    if blocks < 1:
        return None
    need_bytes = blocks * executor.block_tokens * token_bytes(executor.spec, executor.dtype)
    check_memory(need_bytes, f"a host tier of {host_tokens:,} tokens", "ask for fewer (--host-tokens)")
    return HostMemory(executor.pools, blocks=blocks, block_tokens=executor.block_tokens)


def warm_up(executor: TorchExecutor) -> None:
    """Compute one small batch, so that no call pays for what torch sets up at its first use."""
    tokens = [0] * min(executor.block_tokens, executor.max_context_tokens)
    sampling = Sampling(max_output_tokens=1)
    executor.run([Row(call="warm-up", tokens=tokens, start=0, blocks=[0], sampling=sampling, step=0)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the model and serve the daemon until it goes. Exits with 2 if the model cannot be served."""
    parser = argparse.ArgumentParser(prog="python -m agentsched.engines.embedded", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket to the daemon")
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json")
    parser.add_argument("--kv-tokens", type=int, required=True, help="KV capacity")
    parser.add_argument("--host-tokens", type=int, default=0, help="KV kept in host memory; 0: no such tier")
    parser.add_argument("--block-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="threads that compute")
    parser.add_argument("--chunk-tokens", type=int, default=512, help="prefill tokens in a step")
    parser.add_argument("--max-running", type=int, default=64)
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default=None, help="the config's by default")
    parser.add_argument("--device", default=None, help="cpu or cuda; cuda by default where there is a GPU")
    parser.add_argument("--name", default=KIND, help="the engine's name in reports")
    options = parser.parse_args(arguments)
    try:
        executor = load_executor(
            options.model,
            options.kv_tokens,
            block_tokens=options.block_tokens,
            threads=options.threads,
            dtype=_DTYPES.get(options.dtype),
            device=options.device,
        )
        engine = BatchingEngine(
            executor,
            KIND,
            host_tier=load_host_tier(executor, options.host_tokens),
            chunk_tokens=options.chunk_tokens,
            max_running=options.max_running,
            logprobs=True,
            grammars=executor.sampler.grammars is not None,
            name=options.name,
        )
    except (ModelError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    warm_up(executor)
    host(engine, options.fd)


if __name__ == "__main__":
    main()
