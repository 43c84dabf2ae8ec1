"""The simulated engine: batching and KV for real, computing by a cost model.

Only the executor and the host tier's link differ from the embedded engine, so what it queues, evicts,
preempts and reports is what a real engine does. In the simulator it runs in virtual time; as a process
(``python -m agentsched.engines.simulated --fd N``) it sleeps for as long as a step would take.
"""

from __future__ import annotations

import argparse
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from agentsched.engines.batching import BatchingEngine
from agentsched.engines.cost import CostProfile
from agentsched.engines.execution import Row, Sampled
from agentsched.engines.host_tier import Move


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


_WAITED_FOR_BLOCKS = 64
"""So many that an idle engine waits for at once: a block at a time would make a step of each."""


class SimulatedLink:
    """A host tier in virtual time: one link, in order. Demotion costs nothing, for it keeps up with prefill
    on every profile at a fifth of the link or less."""

    def __init__(self, profile: CostProfile, blocks: int, block_tokens: int) -> None:
        self.blocks = blocks
        self.tokens_per_s = profile.host_tokens_per_s
        self._block_s = block_tokens / profile.host_tokens_per_s
        self._ends_s: list[float] = []
        self._ended = 0

    def demote(self, moves: Sequence[Move]) -> None:
        return None

    def promote(self, moves: Sequence[Move], now: float) -> None:
        for _ in moves:
            self._ends_s.append(self._free_s(now) + self._block_s)

    def promoted(self, now: float) -> int:
        # What a step is told to wait for and what it then reads off the clock may differ by a rounding.
        ended = bisect_right(self._ends_s, now + 1e-9)
        del self._ends_s[:ended]
        self._ended += ended
        return self._ended

    def make_way(self, blocks: Iterable[int]) -> None:
        return None

    def load_s(self, blocks: int, now: float) -> float:
        return self._free_s(now) - now + blocks * self._block_s

    def wait(self, now: float) -> float:
        if not self._ends_s:
            return 0.0
        return max(0.0, self._ends_s[min(_WAITED_FOR_BLOCKS, len(self._ends_s)) - 1] - now)

    def _free_s(self, now: float) -> float:
        return max(now, self._ends_s[-1]) if self._ends_s else now


def simulated(
    profile: CostProfile,
    capacity_tokens: int,
    *,
    host_tokens: int = 0,
    block_tokens: int = 16,
    max_context_tokens: int | None = None,
    vocabulary: int = 32_768,
    chunk_tokens: int = 512,
    max_running: int = 64,
    name: str = "simulated",
) -> BatchingEngine:
    """A simulated engine. ``capacity_tokens`` and ``host_tokens`` are rounded down to whole blocks; a context
    may fill all of the capacity unless ``max_context_tokens`` says less."""
    if host_tokens < 0:
        raise ValueError(f"host_tokens must be >= 0, got {host_tokens}")
    num_blocks = capacity_tokens // block_tokens
    executor = CostModelExecutor(
        profile=profile,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        vocabulary=vocabulary,
        max_context_tokens=max_context_tokens or num_blocks * block_tokens,
    )
    host_blocks = host_tokens // block_tokens
    return BatchingEngine(
        executor,
        "simulated",
        host_tier=SimulatedLink(profile, host_blocks, block_tokens) if host_blocks else None,
        chunk_tokens=chunk_tokens,
        max_running=max_running,
        name=name,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as an engine process, in real time."""
    # Imported here, for the simulator hosts this engine without any process.
    from agentsched.engines.process import host

    parser = argparse.ArgumentParser(prog="python -m agentsched.engines.simulated", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket to the daemon")
    parser.add_argument("--name", default="simulated", help="the engine's name in reports")
    parser.add_argument("--kv-tokens", type=int, default=450_000, help="KV capacity")
    parser.add_argument("--host-tokens", type=int, default=0, help="KV kept in host memory; 0: no such tier")
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
        host_tokens=options.host_tokens,
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
