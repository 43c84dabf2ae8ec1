"""A recorded run of a real engine, beside which the simulator can be put: does it tell the same hit rate?

What was played is not kept, but how it is made (a generated trace and the divisors of its tokens and gaps),
and what came of it on the real engine, with the costs that were measured there.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import msgspec

from agentsched.core import Core, make_policy
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.cost import CostProfile
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.meter import Meter
from agentsched.workloads.scaled import scaled
from agentsched.workloads.simulator import Simulation
from agentsched.workloads.summary import Host
from agentsched.workloads.traces import load
from agentsched.workloads.workload import Workload, every_program_once

RECORDED = Path(__file__).parent / "results" / "sglang-stock.json"


class RecordedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run: the programs in the order of ``seed``."""

    seed: int
    hit_rate: float
    recomputed_tokens: int
    tct_mean_s: float


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """``trace`` is as ``agentsched simulate`` takes it, generated; its first ``programs`` were played,
    ``concurrency`` at once, with tokens and gaps divided. The engine had ``kv_tokens`` of KV."""

    engine: str
    command: str
    host: Host
    trace: str
    programs: int
    concurrency: int
    token_divisor: float
    gap_divisor: float
    kv_tokens: int
    chunk_tokens: int
    max_running: int
    profile: CostProfile
    runs: tuple[RecordedRun, ...]


def read_recording(path: Path = RECORDED) -> Recording:
    """Raises ``OSError`` and ``msgspec.MsgspecError``."""
    return msgspec.json.decode(path.read_bytes(), type=Recording)


def write_recording(recording: Recording, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(recording), indent=1) + b"\n")


def error(recording: Recording) -> float:
    """The simulator's mean hit rate over the recorded runs, over the real one, less 1. Single runs say less:
    who evicts whom under pressure turns on moments."""
    told = fmean(simulated_hit_rate(recording, run.seed) for run in recording.runs)
    return told / fmean(run.hit_rate for run in recording.runs) - 1


def simulated_hit_rate(recording: Recording, seed: int, *, policy: str = "fcfs-lru") -> float:
    """Cached tokens over prompt tokens, of the same programs on the simulated engine."""
    made = scaled(load(recording.trace), tokens=recording.token_divisor, gaps=recording.gap_divisor)
    workload = Workload(tuple(made[: recording.programs]))
    cast, chosen = every_program_once(workload, seed)
    meter = Meter(cast.script, workload.tenants())
    engine = AnalyticEngine(
        recording.profile,
        recording.kv_tokens,
        block_tokens=1,
        chunk_tokens=recording.chunk_tokens,
        max_running=recording.max_running,
    )
    Simulation(
        Core(make_policy(policy)),
        [engine],
        chosen[: recording.concurrency],
        Conditions(concurrency=recording.concurrency, seed=seed),
        agents=cast.agents,
        then=chosen[recording.concurrency :],
        log=meter.take,
    ).run()
    return meter.counts["cached"] / meter.counts["prompt"]
