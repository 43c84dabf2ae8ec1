"""``agentsched demo``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console

if TYPE_CHECKING:
    from agentsched.workloads.demo import Outcome


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/demo"),
    show_default=True,
    help="Folder for summary.json, report.html and logs.",
)
@click.option("--agents", default=10, show_default=True, help="Agents at once.")
@click.option("--tasks", "task_ids", help="Tasks, separated by commas.  [default: the five lightest]")
@click.option("--rounds", default=2, show_default=True, help="Runs of each policy.")
@click.option(
    "--policies",
    default="fcfs-lru,agentsched",
    show_default=True,
    help="Policies to compare, separated by commas: the baseline first, ours last.",
)
@click.option(
    "--kv-tokens",
    type=click.IntRange(min=1),
    help="KV capacity of the engine.  [default: half of what all agents hold at their ends]",
)
@click.option("--seed", default=0, show_default=True, help="Orders the tasks; the same for all policies.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json at the end, progress on stderr.")
def demo(
    out: Path,
    agents: int,
    task_ids: str | None,
    rounds: int,
    policies: str,
    kv_tokens: int | None,
    seed: int,
    as_json: bool,
) -> int:
    """Run real agents with a baseline policy and with ours, and compare.

    Unmodified coding agents repair bugs in real packages: their model answers from a recording, but
    the engine computes every token, and every command runs in a sandbox of its own. The first run
    downloads the packages; later ones need no network. Ends with 1 if a task's hidden tests failed.
    """
    from agentsched.workloads.demo import LIGHT_TASKS

    console = Console(stderr=as_json)
    outcome = _run(
        console,
        out=out,
        agents=agents,
        tasks=tuple(_words(task_ids)) if task_ids is not None else LIGHT_TASKS,
        rounds=rounds,
        policies=tuple(_words(policies)),
        kv_tokens=kv_tokens,
        seed=seed,
    )
    if as_json:
        click.echo(msgspec.json.encode(outcome.document()))
    _tell(console, outcome, table=not as_json)
    console.print(f"Report: {out / 'report.html'}", highlight=False, soft_wrap=True)
    return 0 if outcome.tasks.passed == outcome.tasks.total else 1


def _run(console: Console, **options: Any) -> Outcome:
    """The demo, with what can go wrong as one message."""
    from agentsched.workloads.demo import DemoError, Plan, run_demo
    from agentsched.workloads.report import ReportError
    from agentsched.workloads.summary import SummaryError
    from agentsched.workloads.tasks import TaskError
    from agentsched.workloads.trial import DaemonFailed, TrialFailed

    try:
        plan = Plan(**options)
        with _ending_on_signals():
            return run_demo(plan, console)
    except (DemoError, TaskError) as error:
        raise click.ClickException(str(error)) from error
    except (TrialFailed, DaemonFailed, SummaryError, ReportError) as error:
        raise click.ClickException(f"{error}\nWhat there is so far: {options['out']}") from error
    except KeyboardInterrupt:
        text = f"Interrupted; what was started has ended. What there is so far: {options['out']}"
        console.print(text, soft_wrap=True)
        raise


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """What asks a process to end becomes ``SystemExit``, so that all is ended in order."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(console: Console, outcome: Outcome, *, table: bool) -> None:
    from agentsched.workloads.compare import compare, comparison_table, policies_of

    if table:
        console.print(comparison_table(outcome.summaries))
    policies = policies_of(outcome.summaries)
    if len(policies) > 1:
        verdict = compare(outcome.summaries, baseline=policies[0], ours=policies[-1])
        console.print(verdict.sentence(), highlight=False)
    for result in outcome.results:
        if not result.passed:
            console.print(
                f"FAILED {result.task}, {result.policy}, round {result.round + 1}: {result.detail}",
                markup=False,
            )
    count = outcome.tasks
    console.print(f"{count.passed} of {count.total} tasks passed their hidden tests.", highlight=False)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
