"""agentsched on a real SGLang server, with a made-up model on this CPU: what the plugin and the daemon gain.

Agents of a generated trace, made small enough for the server, call it over HTTP; gaps are waited for. KV is
sized for the pressure: the mean of the live programs' summed contexts where nothing waits for room, over KV.
Contenders: stock SGLang; the plugin behind the daemon; and one half of that each (``--contenders``): the
daemon before a stock server (admission alone), and, under a policy that lets everybody in, the plugin
(retention alone) and a stock server's sessions (soft pins alone). Then what the plugin costs where it has
nothing to do. Beside stock SGLang stands the hit rate that the simulator tells of the same programs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentsched.engines.sglang.compatibility import TRIED
from agentsched.workloads import anchor, scratch
from agentsched.workloads.anchor import RecordedRun, Recording, simulated_hit_rate, write_recording
from agentsched.workloads.bench import _found
from agentsched.workloads.bench import _replay as replaying
from agentsched.workloads.bench._replay_options import plan_options
from agentsched.workloads.bench._sglang_costs import WIDE, Costs, calibrate
from agentsched.workloads.bench._sglang_overhead import Overhead, measure
from agentsched.workloads.bench._sglang_runs import CONTENDERS, TITLES, Contender, Runs, play
from agentsched.workloads.replayed import ReplayFailed
from agentsched.workloads.served import DaemonFailed
from agentsched.workloads.sglang_model import CONTEXT_TOKENS, write_model
from agentsched.workloads.sglang_server import Limits, SglangFailed, SglangServer, missing
from agentsched.workloads.summary import describe_host
from agentsched.workloads.traces import TraceError
from agentsched.workloads.workload import Workload

OUT = Path("out/bench/sglang.json")
LOGS = Path("out/bench/sglang-logs")
CALIBRATED_KV_TOKENS = 60_000
ANCHOR_WANT = 0.05

Say = Callable[[str], None]


@dataclass(slots=True)
class Made:
    """All that was measured."""

    plan: replaying.Plan
    limits: Limits
    costs: Costs
    runs: Runs
    overhead: Overhead | None

    def simulated(self) -> dict[str, list[float]]:
        """The hit rates that the simulator tells, a repeat each, of the contenders that it can play."""
        recording = self.recording()
        return {
            name: [simulated_hit_rate(recording, run.seed, policy=policy) for run in recording.runs]
            for name, policy in (("stock", "fcfs-lru"), ("agentsched", "agentsched"))
            if name in self.runs.of
        }

    def recording(self) -> Recording:
        """Of stock SGLang."""
        plan, limits = self.plan, self.limits
        return Recording(
            engine=f"SGLang {TRIED[-1]}, stock",
            command=_found.command("sglang"),
            host=describe_host(),
            trace=plan.trace,
            programs=plan.programs,
            concurrency=plan.concurrency,
            token_divisor=plan.token_divisor,
            gap_divisor=plan.gap_divisor,
            kv_tokens=limits.kv_tokens,
            chunk_tokens=limits.chunk_tokens,
            max_running=limits.max_running,
            profile=self.costs.profile,
            runs=tuple(
                RecordedRun(
                    seed=seed,
                    hit_rate=run.hit_rate,
                    recomputed_tokens=run.recomputed_tokens,
                    tct_mean_s=run.tct_mean_s,
                )
                for seed, run in enumerate(self.runs.of["stock"])
            ),
        )

    def goals(self) -> dict[str, dict[str, Any]]:
        found = self.runs.goals()
        error = anchor.error(self.recording())
        found["hit rate of stock SGLang, the simulated one over the real one, less 1"] = {
            "value": round(error, 4),
            "want": f"within {ANCHOR_WANT:g}",
            "met": abs(error) <= ANCHOR_WANT,
        }
        return found | (self.overhead.goals() if self.overhead else {})

    def figures(self) -> dict[str, Any]:
        return {
            "plan": {
                name: value
                for name, value in asdict(self.plan).items()
                if name in ("trace", "programs", "concurrency", "token_divisor", "gap_divisor", "pressure")
            },
            "limits": asdict(self.limits),
            "model": WIDE,
            "profile": asdict(self.costs.profile) | {"mean_error": self.costs.mean_error},
            "warm_share": self.costs.warm_share,
            "simulated_hit_rate": self.simulated(),
            **self.runs.figures(),
            **({"overhead": self.overhead.figures()} if self.overhead else {}),
        }


@click.command()
@click.option("--quick", is_flag=True, help="Few programs and rounds: only shows that it works.")
@click.option(
    "--contenders",
    default=",".join(CONTENDERS),
    show_default=True,
    help="Who plays beside stock SGLang, which always does.",
)
@plan_options(replaying.Plan(concurrency=12, token_divisor=7.0, gap_divisor=4.0))
@click.option(
    "--pairs",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Rounds of the cost of an idle plugin.",
)
@click.option(
    "--record", type=click.Path(path_type=Path), help="Keep the runs of stock SGLang here, for tests."
)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, show_default=True)
def main(quick: bool, contenders: str, pairs: int, record: Path | None, out: Path, **plan: Any) -> None:
    """agentsched on a real SGLang server, on this CPU: about 40 minutes; ``scripts/demo sglang``, too."""
    console, progress = Console(), Console(stderr=True)
    if quick:
        plan |= {"programs": 8, "concurrency": 6, "token_divisor": 30.0, "repeats": 1}
        pairs = min(pairs, 2)

    def say(line: str) -> None:
        progress.print(line, style="dim", highlight=False, soft_wrap=True)

    try:
        made = _measure(
            replaying.Plan(policies=("fcfs-lru",), chunk_tokens=4_096, max_running=32, **plan),
            _chosen(contenders),
            pairs,
            say,
        )
    except (ValueError, TraceError, SglangFailed, DaemonFailed, ReplayFailed) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        progress.print("Interrupted; nothing is written.")
        sys.exit(130)
    if record is not None:
        write_recording(made.recording(), record)
    goals = {} if quick else made.goals()
    _tell(made, goals, console)
    _found.keep(_found.headed("sglang", {"figures": made.figures(), "goals": goals}), out, console)


def _chosen(names: str) -> list[Contender]:
    """In our order; stock SGLang first. Raises ``ValueError``."""
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := sorted(wanted - CONTENDERS.keys()):
        raise ValueError(f"no contender {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    return [contender for name, contender in CONTENDERS.items() if name in wanted | {"stock"}]


def _measure(plan: replaying.Plan, contenders: list[Contender], pairs: int, say: Say) -> Made:
    if (reason := missing()) is not None:
        raise SglangFailed(reason)
    workload = replaying.workload_of(plan, CONTEXT_TOKENS)
    with scratch.folder() as model:
        write_model(model, WIDE)
        costs = _costs(model, plan, say)
        limits = _limits(plan, workload, costs)
        say(
            f"{plan.programs} programs of up to {replaying.deepest(workload):,} tokens, "
            f"{limits.kv_tokens:,} tokens of KV"
        )
        runs = play(plan, workload, limits, contenders, model, LOGS, say)
        overhead = measure(model, limits, pairs, say) if pairs else None
    return Made(plan, limits, costs, runs, overhead)


def _costs(model: Path, plan: replaying.Plan, say: Say) -> Costs:
    limits = Limits(
        kv_tokens=CALIBRATED_KV_TOKENS,
        context_tokens=CONTEXT_TOKENS,
        chunk_tokens=plan.chunk_tokens,
        max_running=plan.max_running,
    )
    server = SglangServer(model, (), limits)
    say("starting SGLang, to learn what its steps cost")
    try:
        server.start()
        return asyncio.run(calibrate(server, plan.chunk_tokens, say))
    finally:
        server.kill()


def _limits(plan: replaying.Plan, workload: Workload, costs: Costs) -> Limits:
    return Limits(
        kv_tokens=replaying.kv_tokens(plan, workload, costs.profile),
        context_tokens=CONTEXT_TOKENS,
        chunk_tokens=plan.chunk_tokens,
        max_running=plan.max_running,
    )


def _tell(made: Made, goals: dict[str, dict[str, Any]], console: Console) -> None:
    runs, plan = made.runs, made.plan
    shown = Table("", *runs.of, title="medians of the repeats (least to greatest)")
    for measure_, title in TITLES.items():
        shown.add_row(title, *(replaying.spread(runs.values(name, measure_)) for name in runs.of))
    for measure_ in ("tct_mean_s", "tct_p99_s", "recomputed_tokens"):
        others = [replaying.spread(runs.ratios(measure_, name)) for name in runs.of if name != "stock"]
        shown.add_row(f"{TITLES[measure_].removesuffix(', s')}: stock's over it", "", *others)
    console.print(shown)
    for name in runs.of:
        console.print(f"{name}: {CONTENDERS[name].what}", soft_wrap=True)
    console.print(
        f"{plan.trace}, tokens divided by {plan.token_divisor:g} and gaps by {plan.gap_divisor:g}; "
        f"{plan.programs} programs, {plan.concurrency} at once, pressure {plan.pressure:g}: "
        f"{made.limits.kv_tokens:,} tokens of KV; {plan.repeats} repeats. A prompt that is cached takes "
        f"{made.costs.warm_share:.0%} of what it takes with an empty cache",
        soft_wrap=True,
    )
    for name, told in made.simulated().items():
        console.print(f"simulated cached share of prompts, {name}: {replaying.spread(told)}", soft_wrap=True)
    _found.tell(goals, console)


if __name__ == "__main__":
    main()
