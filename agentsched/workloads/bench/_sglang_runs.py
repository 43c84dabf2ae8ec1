"""Agents replayed against a real SGLang server: without us, with us, and with one half of us.

Each run has a fresh server and a fresh daemon, which has learned nothing. All contenders play the same
programs in the same order, in turns; the next repeat has them in another order.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from agentsched.engines.sglang.recorded import FLAG
from agentsched.workloads.bench._replay import Plan
from agentsched.workloads.cores import choose_cores
from agentsched.workloads.replayed import Replayed, Server, replay
from agentsched.workloads.served import Daemon
from agentsched.workloads.sglang_server import PLUGIN, WITHOUT_PLUGINS, Limits, SglangServer
from agentsched.workloads.summary import percentile
from agentsched.workloads.workload import Workload, every_program_once

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """``arguments``: of the server, beside those that all have; ``policy``: of the daemon before the server;
    None: agents call the server itself."""

    name: str
    what: str
    arguments: tuple[str, ...] = ()
    policy: str | None = None


STOCK = Contender(name="stock", what="SGLang alone")
OURS = Contender(
    name="agentsched", what="the plugin behind the daemon", arguments=PLUGIN, policy="agentsched"
)
ADMISSION = Contender(name="admission", what="the daemon before a stock server", policy="agentsched")
RETENTION = Contender(
    name="retention",
    what="the plugin behind the daemon, whose policy (continuum) lets everybody in",
    arguments=PLUGIN,
    policy="continuum",
)
SOFT = Contender(
    name="soft",
    what="sessions of a stock server as pins, behind the daemon; its policy (continuum) lets everybody in",
    arguments=("--enable-session-radix-cache",),
    policy="continuum",
)
CONTENDERS = {contender.name: contender for contender in (STOCK, OURS, ADMISSION, RETENTION, SOFT)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one contender. Seconds and tokens."""

    tct_mean_s: float
    tct_p99_s: float
    return_ttft_p50_s: float
    return_ttft_p99_s: float
    span_s: float
    prompt_tokens: int
    cached_tokens: int
    recomputed_tokens: int
    context_tokens: int
    server_cpu_s: float
    daemon_cpu_s: float

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens

    def figures(self) -> dict[str, float]:
        return asdict(self) | {"hit_rate": self.hit_rate}


TITLES: dict[str, str] = {
    "tct_mean_s": "TCT mean, s",
    "tct_p99_s": "TCT P99, s",
    "return_ttft_p50_s": "TTFT after a gap, P50, s",
    "return_ttft_p99_s": "TTFT after a gap, P99, s",
    "span_s": "all programs, s",
    "recomputed_tokens": "recomputed tokens",
    "hit_rate": "cached share of prompts",
    "server_cpu_s": "server's CPU, s",
    "daemon_cpu_s": "daemon's CPU, s",
}


@dataclass(slots=True)
class Runs:
    """All runs, by contender, one a repeat."""

    of: dict[str, list[Run]] = field(default_factory=dict)

    def values(self, contender: str, measure: str) -> list[float]:
        return [run.figures()[measure] for run in self.of[contender]]

    def ratios(self, measure: str, contender: str) -> list[float]:
        """That of stock SGLang over the contender's, repeat by repeat. What is nothing counts as one."""
        pairs = zip(self.values("stock", measure), self.values(contender, measure), strict=True)
        return [base / max(1.0 if measure.endswith("tokens") else 1e-9, other) for base, other in pairs]

    def goals(self) -> dict[str, dict[str, Any]]:
        wanted = {"recomputed_tokens": 3.0, "tct_mean_s": 1.5, "tct_p99_s": 1.0}
        found: dict[str, dict[str, Any]] = {}
        for measure, want in wanted.items():
            if "agentsched" not in self.of:
                break
            ratios = self.ratios(measure, "agentsched")
            value = statistics.median(ratios)
            found[f"{TITLES[measure].removesuffix(', s')}, stock SGLang over agentsched"] = {
                "value": round(value, 3),
                "least": round(min(ratios), 3),
                "greatest": round(max(ratios), 3),
                "want": f">= {want:g}",
                "met": value >= want,
            }
        return found

    def figures(self) -> dict[str, Any]:
        return {
            "runs": {name: [run.figures() for run in runs] for name, runs in self.of.items()},
            "ratios": {
                f"stock over {name}": {
                    measure: self.ratios(measure, name)
                    for measure in ("recomputed_tokens", "tct_mean_s", "tct_p99_s")
                }
                for name in self.of
                if name != "stock"
            },
            "contenders": {name: CONTENDERS[name].what for name in self.of},
        }


def play(
    plan: Plan,
    workload: Workload,
    limits: Limits,
    contenders: Sequence[Contender],
    model: Path,
    logs: Path,
    say: Say,
) -> Runs:
    """Raises ``SglangFailed``, ``DaemonFailed`` and ``ReplayFailed``."""
    runs = Runs()
    for repeat in range(plan.repeats):
        for contender in contenders if repeat % 2 == 0 else list(reversed(contenders)):
            told = f"repeat {repeat + 1} of {plan.repeats}, {contender.name}"
            folder = logs / f"{contender.name}-{repeat + 1}"
            folder.mkdir(parents=True, exist_ok=True)
            run = play_once(plan, workload, limits, contender, repeat, model, folder, told, say)
            runs.of.setdefault(contender.name, []).append(run)
            say(
                f"{told}: mean TCT {run.tct_mean_s:.1f} s, {run.recomputed_tokens:,} tokens recomputed, "
                f"{run.span_s:.0f} s in all"
            )
    return runs


def play_once(
    plan: Plan,
    workload: Workload,
    limits: Limits,
    contender: Contender,
    repeat: int,
    model: Path,
    folder: Path,
    told: str,
    say: Say,
) -> Run:
    """One run; ``folder`` gets the daemon's output. See ``play``."""
    _, chosen = every_program_once(workload, repeat)
    with ExitStack() as undo:
        server = SglangServer(
            model,
            (*contender.arguments, FLAG),
            limits,
            {} if contender.arguments == PLUGIN else WITHOUT_PLUGINS,
        )
        undo.callback(server.kill)
        say(f"{told}: starting SGLang")
        server.start()
        where = Server(url=server.url, model="tiny", scheduled=contender.policy is not None)
        daemon: Daemon | None = None
        if contender.policy is not None:
            arguments = ["--upstream", server.url, "--policy", contender.policy, "--no-state"]
            arguments += ["--log", str(folder / "events.jsonl")]
            daemon = Daemon(arguments, folder=folder, core=choose_cores()[1])
            undo.callback(daemon.end)
            where = Server(url=daemon.wait_ready(), model="tiny", scheduled=True)

        def ended(now: float, count: int) -> None:
            if count % 8 == 0:
                say(f"{told}: {count} of {len(chosen)} programs have ended after {now:.0f} s")

        assert server.process is not None
        before_s = cpu_s(server.process.pid)
        made = asyncio.run(replay(where, chosen, concurrency=plan.concurrency, ended=ended))
        used_s = cpu_s(server.process.pid) - before_s
        daemon_s = 0.0 if daemon is None else cpu_s(daemon.pid)
    return _run(made, used_s, daemon_s)


def _run(made: Replayed, server_cpu_s: float, daemon_cpu_s: float) -> Run:
    times = list(made.completion_times().values())
    returns = made.returns_s()
    return Run(
        tct_mean_s=statistics.fmean(times),
        tct_p99_s=percentile(times, 99),
        return_ttft_p50_s=percentile(returns, 50),
        return_ttft_p99_s=percentile(returns, 99),
        span_s=max(call.ended_s for call in made.calls),
        prompt_tokens=made.total("prompt_tokens"),
        cached_tokens=made.total("cached_tokens"),
        recomputed_tokens=made.total("recomputed_tokens"),
        context_tokens=made.context_tokens(),
        server_cpu_s=server_cpu_s,
        daemon_cpu_s=daemon_cpu_s,
    )


def cpu_s(pid: int) -> float:
    """CPU time of a process and of all that it started and that still runs, seconds."""
    parent = psutil.Process(pid)
    total = 0.0
    for process in (parent, *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
