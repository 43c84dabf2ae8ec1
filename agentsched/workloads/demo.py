"""The demo: real agents, once with a baseline policy and once with ours, side by side.

Each round runs every policy on the same programs, in an order that turns round from round to round,
so that neither policy always comes first. Between runs nothing is kept but the model and the caches
of downloads: every run has a fresh daemon, engine, agents and trees.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from agentsched.core.policies import make_policy
from agentsched.engines.embedded.preset import ensure_model
from agentsched.workloads import scratch, tasks
from agentsched.workloads.board import Board
from agentsched.workloads.report import Run, TaskResult, write_report
from agentsched.workloads.summary import Summary, describe_host, summarise
from agentsched.workloads.tasks import Task
from agentsched.workloads.trial import Trial, run_trial

LIGHT_TASKS = (
    "python-dotenv-1.2.2-byte-order-mark",
    "boltons-26.0.0-indexedset-slice",
    "boltons-26.1.0-jsonl-seek",
    "tenacity-9.1.4-try-again-cause",
    "python-slugify-8.0.3-uppercase-pairs",
)
"""Tasks whose tools need at most 13 CPU seconds: two cores must do for all agents and the engine."""

POLICIES = ("fcfs-lru", "agentsched")
RUN_LIMIT_S = 600.0
KV_SHARE = 0.5
CHARS_PER_TOKEN = 3.0
"""Measured: 2.9 to 3.1 on the final contexts of the light tasks, with the tokenizer that set-up trains."""
ROOM_FOR_ONE = 1.25
KV_BLOCK = 256


class DemoError(Exception):
    """The demo cannot start as asked; the message names the option and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. ``kv_tokens`` None: half of the agents' summed final contexts."""

    out: Path
    agents: int = 10
    tasks: tuple[str, ...] = LIGHT_TASKS
    rounds: int = 2
    policies: tuple[str, ...] = POLICIES
    kv_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("agents", "rounds"):
            if getattr(self, name) < 1:
                raise DemoError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not self.tasks:
            raise DemoError("--tasks names no task")
        if not self.policies or len(set(self.policies)) < len(self.policies):
            raise DemoError(f"--policies must name policies, each once, got {','.join(self.policies)!r}")
        for policy in self.policies:
            try:
                make_policy(policy)
            except ValueError as error:
                raise DemoError(f"--policies: {error}") from error


class TaskCount(msgspec.Struct, frozen=True):
    """Agents' runs graded by hidden tests, over all runs."""

    total: int
    passed: int


@dataclass(slots=True)
class Outcome:
    """What the demo found so far; complete when ``run_demo`` returns."""

    host: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    results: list[TaskResult] = field(default_factory=list)

    @property
    def summaries(self) -> list[Summary]:
        return [run.summary for run in self.runs]

    @property
    def tasks(self) -> TaskCount:
        return TaskCount(len(self.results), sum(result.passed for result in self.results))

    def document(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        return {"host": self.host, "runs": self.summaries, "tasks": self.tasks}


@dataclass(frozen=True, slots=True)
class Ready:
    """All that runs share: tasks and their prepared trees, environment, model, KV capacity."""

    tasks: dict[str, Task]
    trees: dict[str, Path]
    environment: Path
    model: Path
    kv_tokens: int


def run_demo(plan: Plan, console: Console) -> Outcome:
    """Set up, run all policies and rounds, and write summary and report after each run.

    Raises ``DemoError``, ``TaskError``, ``TrialFailed``, ``DaemonFailed``; what was written until
    then stays in ``plan.out``.
    """
    check_writable(plan.out)
    outcome = Outcome(describe_host())
    with scratch.folder() as place:
        ready = set_up(plan, place, console)
        for round_, policy in schedule(plan):
            _run_one(plan, ready, round_, policy, place, outcome, console)
    return outcome


def check_writable(out: Path) -> None:
    """Make the folder for results, and try that files can be written there. Raises ``DemoError``."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise DemoError(f"--out {out} cannot be written: {error.strerror or error}") from error


def schedule(plan: Plan) -> Iterator[tuple[int, str]]:
    """(round, policy) in the order of running."""
    for round_ in range(plan.rounds):
        order = plan.policies if round_ % 2 == 0 else tuple(reversed(plan.policies))
        yield from ((round_, policy) for policy in order)


def assign(plan: Plan, chosen: Sequence[Task], round_: int) -> tuple[tuple[str, Task], ...]:
    """(program, task) of each agent, in an order by seed and round, equal for all policies."""
    given = _shares(plan.agents, chosen)
    random.Random(plan.seed * 1000 + round_).shuffle(given)
    return tuple((f"agent-{number:02d}", task) for number, task in enumerate(given, 1))


def _shares(agents: int, chosen: Sequence[Task]) -> list[Task]:
    """Each task once while there are agents; all others get the task whose tools need the least CPU.

    All tools share one core. Were it the bottleneck, all policies would look alike, since they decide
    about the engine.
    """
    lightest = min(chosen, key=lambda task: task.tool_cpu_s)
    return [*chosen[:agents], *([lightest] * (agents - len(chosen)))]


def set_up(plan: Plan, place: Path, console: Console) -> Ready:
    """Fetch, build and prepare what is missing; from a warm cache this takes a few seconds."""

    def say(text: str) -> None:
        console.print(f"set-up: {text}", highlight=False)

    chosen = [tasks.load_task(name) for name in plan.tasks]
    contexts = [round(task.final_context_chars / CHARS_PER_TOKEN) for task in _shares(plan.agents, chosen)]
    if plan.kv_tokens is not None and plan.kv_tokens < max(contexts):
        raise DemoError(
            f"--kv-tokens {plan.kv_tokens} holds no whole agent: the longest grows to {max(contexts):,}"
        )
    cache = tasks.cache_folder()
    say(f"sources of {', '.join(f'{task.package} {task.version}' for task in chosen)}")
    sdists = [tasks.fetch_sdist(task, cache) for task in chosen]
    say("environment in which the agents' commands and the hidden tests run")
    environment = tasks.ensure_environment(chosen, cache)
    model = ensure_model(cache / "models", progress=say)
    trees = {task.instance_id: place / "trees" / task.instance_id for task in chosen}
    for task, sdist in zip(chosen, sdists, strict=True):
        tasks.prepare_tree(task, sdist, trees[task.instance_id])
    working_set = sum(contexts)
    kv_tokens = plan.kv_tokens or _capacity(contexts)
    say(
        f"{plan.agents} agents will grow to about {working_set:,} tokens together; "
        f"the engine holds {kv_tokens:,} ({kv_tokens / working_set:.0%})"
    )
    return Ready(
        tasks={task.instance_id: task for task in chosen},
        trees=trees,
        environment=environment,
        model=model,
        kv_tokens=kv_tokens,
    )


def _capacity(contexts: Sequence[int]) -> int:
    """A share of the working set, but room for the longest context and some error of the estimate."""
    wanted = max(sum(contexts) * KV_SHARE, max(contexts) * ROOM_FOR_ONE)
    return round(wanted / KV_BLOCK) * KV_BLOCK


def _run_one(
    plan: Plan,
    ready: Ready,
    round_: int,
    policy: str,
    within: Path,
    outcome: Outcome,
    console: Console,
) -> None:
    title = f"round {round_ + 1} of {plan.rounds}, {policy}"
    place = Path(tempfile.mkdtemp(prefix="run-", dir=within))
    with tasks.scripts_folder() as scripts, Board(console, title) as board:
        trial = Trial(
            policy=policy,
            agents=assign(plan, list(ready.tasks.values()), round_),
            engine=(
                *("--engine", "embedded", "--model", str(ready.model), "--scripts", str(scripts)),
                *("--kv-tokens", str(ready.kv_tokens)),
            ),
            trees=ready.trees,
            environment=ready.environment,
            logs=plan.out / "logs" / f"round-{round_ + 1}-{policy}",
            limit_s=RUN_LIMIT_S,
        )
        finished = run_trial(trial, place=place, board=board)
    shutil.rmtree(place, ignore_errors=True)
    summary = summarise(
        finished.entries, policy=policy, seed=plan.seed, engine="embedded", round=round_, host=outcome.host
    )
    outcome.runs.append(Run(summary, finished.entries))
    for program, found in finished.grades.items():
        outcome.results.append(
            TaskResult(
                task=f"{found.instance_id} ({program})",
                policy=policy,
                round=round_,
                passed=found.passed,
                detail="" if found.passed else f"missing: {', '.join(found.missing)}\n{found.output}",
            )
        )
    passed = sum(found.passed for found in finished.grades.values())
    console.print(
        f"{title}: mean TCT {summary.tct_s.mean:.1f} s, {passed} of {len(finished.grades)} tasks passed",
        highlight=False,
    )
    write_results(plan, outcome)


def write_results(plan: Plan, outcome: Outcome) -> None:
    """Write ``summary.json`` and ``report.html``; both are whole after every run."""
    text = msgspec.json.format(msgspec.json.encode(outcome.document()), indent=2)
    _replace(plan.out / "summary.json", text)
    write_report(
        plan.out / "report.html",
        outcome.runs,
        outcome.results,
        outcome.host,
        baseline=plan.policies[0],
        ours=plan.policies[-1],
    )


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with contextlib.ExitStack() as undo:
        undo.callback(Path(name).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            file.write(data + b"\n")
        Path(name).chmod(0o644)
        os.replace(name, path)
