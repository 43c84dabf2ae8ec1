"""The simulated engine: batching and KV for real, computing by a cost model.

Only the executor differs from the embedded engine, so what it queues, evicts, preempts and reports is
what a real engine does. In the simulator it runs in virtual time; as a process
(``python -m agentsched.engines.simulated --fd N``) it sleeps for as long as a step would take.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

from agentsched.engines.batching import BatchingEngine
from agentsched.engines.cost import CostProfile
from agentsched.engines.execution import Row, Sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModelExecutor:
    """An executor that computes nothing: time by the profile, tokens by a hash of call and step."""

    profile: CostProfile
    num_blocks: int
    block_tokens: int
    vocabulary: int
    max_context_tokens: int

    def run(self, rows: Sequence[Row]) -> tuple[float, Sequence[Sampled]]:
        tokens = [
            zlib.crc32(f"{row.call}/{row.step}".encode()) % self.vocabulary if row.sampling else None
            for row in rows
        ]
        return self.profile.seconds(rows), tokens


def simulated(
    profile: CostProfile,
    capacity_tokens: int,
    *,
    block_tokens: int = 16,
    max_context_tokens: int | None = None,
    vocabulary: int = 32_768,
    chunk_tokens: int = 512,
    max_running: int = 64,
    name: str = "simulated",
) -> BatchingEngine:
    """A simulated engine. ``capacity_tokens`` is rounded down to whole blocks; a context may fill all
    of it unless ``max_context_tokens`` says less."""
    num_blocks = capacity_tokens // block_tokens
    executor = CostModelExecutor(
        profile=profile,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        vocabulary=vocabulary,
        max_context_tokens=max_context_tokens or num_blocks * block_tokens,
    )
    return BatchingEngine(
        executor, "simulated", chunk_tokens=chunk_tokens, max_running=max_running, name=name
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as an engine process, in real time."""
    # Imported here, for the simulator hosts this engine without any process.
    from agentsched.engines.process import host

    parser = argparse.ArgumentParser(prog="python -m agentsched.engines.simulated", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket to the daemon")
    parser.add_argument("--name", default="simulated", help="the engine's name in reports")
    parser.add_argument("--kv-tokens", type=int, default=450_000, help="KV capacity")
    parser.add_argument("--block-tokens", type=int, default=16)
    parser.add_argument("--max-context-tokens", type=int, default=None, help="all of the KV by default")
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--chunk-tokens", type=int, default=512, help="prefill tokens in a step")
    parser.add_argument("--max-running", type=int, default=64)
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster than the profile")
    for field in fields(CostProfile):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=float, default=getattr(CostProfile(), field.name))
    options = parser.parse_args(arguments)
    if not options.speed > 0:
        parser.error(f"--speed must be > 0, got {options.speed}")
    profile = CostProfile(**{field.name: getattr(options, field.name) for field in fields(CostProfile)})
    engine = simulated(
        profile.scaled(1 / options.speed),
        options.kv_tokens,
        block_tokens=options.block_tokens,
        max_context_tokens=options.max_context_tokens,
        vocabulary=options.vocabulary,
        chunk_tokens=options.chunk_tokens,
        max_running=options.max_running,
        name=options.name,
    )
    host(engine, options.fd, pace=time.sleep)


if __name__ == "__main__":
    main()
