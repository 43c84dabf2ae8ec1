"""Agents replayed on the embedded engine itself, on this CPU: all is computed, and gaps are not waited for.

A generated trace is made small enough for a model of 32M parameters, and KV is sized for the pressure. Each
policy replays the same programs, in turns. Beside it stands what the analytic simulator tells of the same
runs, by costs measured in this process just before: that anchors it. Then a context is brought up from
host memory, against computing it again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from agentsched.workloads.bench import _found
from agentsched.workloads.bench import _replay as replaying
from agentsched.workloads.bench._promotion import Load, Promoted, PromotionError, promote
from agentsched.workloads.bench._replay_options import plan_options
from agentsched.workloads.bench.engine import SMALL, TINY
from agentsched.workloads.traces import TraceError

if TYPE_CHECKING:
    from agentsched.engines.embedded.executor import TorchExecutor

OUT = Path("out/bench/replay.json")
PROMOTED = Load(
    tokens=8192, rows=4, row_tokens=512, filler_tokens=1024, quiet_steps=16, rounds=3, chunk_tokens=512
)
PROMOTED_QUICK = Load(
    tokens=512, rows=2, row_tokens=32, filler_tokens=128, quiet_steps=4, rounds=1, chunk_tokens=128
)


class Machine:
    """One model with its weights, over any KV."""

    def __init__(self, config: dict[str, Any], threads: int) -> None:
        from agentsched.engines.embedded.model import Llama
        from agentsched.engines.embedded.spec import load_spec
        from agentsched.engines.embedded.weights import load_tensors

        told = {"model_type": "llama", "max_position_embeddings": 16384, "random_weights_seed": 0, **config}
        with tempfile.TemporaryDirectory(prefix="agentsched-bench-") as path:
            folder = Path(path)
            (folder / "config.json").write_text(json.dumps(told))
            spec = load_spec(folder)
            self._model = Llama(spec, load_tensors(folder, spec), spec.dtype)
        self.max_context_tokens, self._threads = spec.max_context_tokens, threads

    def executor(self, kv_tokens: int) -> TorchExecutor:
        from agentsched.engines.embedded.executor import TorchExecutor

        return TorchExecutor(self._model, num_blocks=-(-kv_tokens // 16), threads=self._threads)


TITLES = {
    "tct_mean_s": "TCT mean, s",
    "tct_p99_s": "TCT P99, s",
    "recomputed_over_context": "recomputed / context",
    "tasks_per_hour": "tasks an hour",
}


def table(made: replaying.Replay) -> Table:
    """Medians over repeats, with the least and the greatest."""
    first, *others = made.plan.policies
    shown = Table("", *made.plan.policies, title="medians of the repeats (least to greatest)")
    for name, value in replaying.MEASURES.items():
        cells = [[value(run) for run in runs] for runs in map(made.measured.__getitem__, made.plan.policies)]
        shown.add_row(TITLES[name], *map(replaying.spread, cells))
    shown.add_row("engine busy, s", *(replaying.spread(made.busy_s[policy]) for policy in made.plan.policies))
    for name in ("tct_mean_s", "tct_p99_s"):
        ratios = [replaying.spread(made.ratios(policy, name)) for policy in others]
        shown.add_row(f"{TITLES[name][:-3]}: {first}'s over it", "", *ratios)
    return shown


@click.command()
@click.option("--quick", is_flag=True, help="A tiny model, few programs: only shows that it works.")
@click.option(
    "--policies", default="fcfs-lru,agentsched", show_default=True, help="The first is compared to."
)
@plan_options(replaying.Plan(programs=20, token_divisor=60.0))
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--promotion/--no-promotion", default=True, show_default=True, help="From host memory, too.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, show_default=True)
def main(quick: bool, policies: str, threads: int, promotion: bool, out: Path, **plan: Any) -> None:
    """Agents replayed on the embedded engine itself, on this CPU: about 5 minutes."""
    console, progress = Console(), Console(stderr=True)
    if quick:
        plan |= {"programs": 12, "concurrency": 8, "token_divisor": 200.0, "repeats": 2}
    names = tuple(dict.fromkeys(name.strip() for name in policies.split(",") if name.strip()))
    try:
        made, promoted = _measure(
            replaying.Plan(policies=names, **plan),
            TINY if quick else SMALL,
            threads,
            (PROMOTED_QUICK if quick else PROMOTED) if promotion else None,
            lambda line: progress.print(line, style="dim", highlight=False, soft_wrap=True),
        )
    except (ValueError, TraceError, PromotionError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        progress.print("Interrupted; nothing is written.")
        sys.exit(130)
    goals = {} if quick else made.goals() | (promoted.goals() if promoted else {})
    _tell(made, promoted, goals, console)
    figures = made.figures() | ({"promotion": promoted.figures()} if promoted else {})
    found = {"threads": threads, "figures": figures, "goals": goals}
    _found.keep(_found.headed("replay", found), out, console)


def _measure(
    plan: replaying.Plan,
    config: dict[str, Any],
    threads: int,
    load: Load | None,
    say: Callable[[str], None],
) -> tuple[replaying.Replay, Promoted | None]:
    # Read by OpenMP once, when torch is imported: two threads on one core wait for each other.
    os.environ.setdefault("OMP_PROC_BIND", "true" if threads > 1 else "false")
    machine = Machine(config, threads)
    made = replaying.replay_on(plan, machine.max_context_tokens, machine.executor, say)
    return made, None if load is None else promote(machine.executor(load.kv_tokens), load, say)


def _tell(made: replaying.Replay, promoted: Promoted | None, goals: dict[str, Any], console: Console) -> None:
    plan = made.plan
    console.print(table(made))
    console.print(
        f"{plan.trace}, tokens divided by {plan.token_divisor:g} and gaps by {plan.gap_divisor:g}; "
        f"{plan.programs} programs, {plan.concurrency} at once, pressure {plan.pressure:g}: "
        f"{made.kv_tokens:,} tokens of KV; {len(made.measured[plan.policies[0]])} repeats",
        soft_wrap=True,
    )
    for line in [*made.lines(), *(promoted.lines() if promoted else [])]:
        console.print(line, soft_wrap=True)
    _found.tell(goals, console)


if __name__ == "__main__":
    main()
