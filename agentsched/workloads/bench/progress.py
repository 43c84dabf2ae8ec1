"""How well is the rest of a running tool call known, by what it prints, and by its elapsed time alone?

Real tools run in real sandboxes, and what the daemon's core would be told of them is kept: shares done at
their times. When 25, 50, 75 and 90 % of a call's time had passed, two estimates of the rest are held
against what it really was: by what the tool told (``graphs/progress.py``, and the gap model where it told
nothing, as the core does), and by the gap model alone, which knows the elapsed time and earlier calls of
that class. Both learn as they go, from the calls before. Sizes differ from run to run, as an agent's
calls do.

* ``error``: of the median of the estimate, as a share of the whole call; mean over calls.
* ``CRPS``: of the whole estimate with its uncertainty (smaller is better), as a share of the whole call.
* ``inside``: how often the real rest lay within the estimate's samples (their ends: 1/16 and 15/16).

Two groups: tools made for this, with test times of long tails; and the commands of the bundled scripted
agents, as those give them, of which calls under a second are not counted.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentsched.cgroups import Progress, Sandbox, ToolSpec
from agentsched.cgroups.commands import programs
from agentsched.cgroups.progress import Tracker
from agentsched.cgroups.watching import Watch
from agentsched.graphs.predict import GapModel, ProgressModel, quarter
from agentsched.workloads import tasks
from agentsched.workloads.bench import _found
from agentsched.workloads.bench._progress_tools import TOOLS, environment

RESULT = Path("out/bench/progress.json")
MARKS = (0.25, 0.5, 0.75, 0.9)
SIZES_S = (1.2, 12.0)
"""Between these, in the logarithm: calls of one class differ as much."""

LEAST_S = 1.0
GIB = 1 << 30

Row = dict[str, Any]


def run(sandbox: Sandbox, spec: ToolSpec) -> tuple[list[Progress], float, int]:
    """What was told of a call, how long it took, and its exit status."""
    seen: list[Progress] = []
    began_s = time.monotonic()
    result = sandbox.run(spec, on_progress=seen.append)
    return seen, time.monotonic() - began_s, result.exit_status


def made_tools(repeats: int, sandbox: Sandbox, console: Console) -> Iterator[Row]:
    """The tools of ``_progress_tools``, all of them in every round, each call of a size of its own."""
    chance = random.Random(7)
    for _ in range(repeats):
        for tool in chance.sample(TOOLS, len(TOOLS)):
            if tool.missing:
                continue
            with tempfile.TemporaryDirectory() as folder:
                size = math.exp(chance.uniform(*map(math.log, SIZES_S)))
                command = tool.prepare(Path(folder), size, chance)
                spec = ToolSpec(command=command, cwd=folder, env=environment(), timeout_s=120, tap=True)
                # The same text in another folder is another command: nothing is remembered but its class.
                yield _row("made", tool.name, spec, run(sandbox, spec), console)
                if tool.again:
                    yield _row("made", f"{tool.name}, again", spec, run(sandbox, spec), console)


def agents_commands(names: Sequence[str], folder: Path, console: Console) -> Iterator[Row]:
    """All commands of the bundled agents, in order."""
    chosen = [tasks.load_task(name) for name in names]
    cache = tasks.cache_folder()
    variables = tasks.task_variables(tasks.ensure_environment(chosen, cache))
    for task in chosen:
        tree = folder / task.instance_id / "repo"
        tasks.prepare_tree(task, tasks.fetch_sdist(task, cache), tree)
        with Sandbox.open(task.instance_id) as sandbox:
            for turn in tasks.load_turns(task.instance_id):
                spec = ToolSpec(command=turn.command, cwd=str(tree), env=variables, timeout_s=120, tap=True)
                row = _row("agents", task.package, spec, run(sandbox, spec), console)
                if row["wall_s"] >= LEAST_S:
                    yield row


def _row(
    group: str, name: str, spec: ToolSpec, ran: tuple[list[Progress], float, int], console: Console
) -> Row:
    seen, wall_s, status = ran
    told = [(p.elapsed_s, p.done_fraction, p.source) for p in seen if p.done_fraction is not None]
    console.print(f"{name}: {wall_s:.1f} s, status {status}, told {len(told)} times", highlight=False)
    return {
        "group": group,
        "tool": name,
        "class": spec.command_class,
        "command": spec.command[:200],
        "wall_s": wall_s,
        "exit_status": status,
        "told": told,
    }


class Estimates:
    """Both models, as the core has them."""

    def __init__(self) -> None:
        self._progress = ProgressModel()
        self._gaps = GapModel()

    def judge(self, row: Row) -> None:
        """Add figures to a row, and learn it."""
        key, wall_s = f"bash:{row['class']}", row["wall_s"]
        row["marks"] = []
        for mark in MARKS:
            at_s = mark * wall_s
            history = [gap_s - at_s for gap_s in self._gaps.samples_beyond(key, at_s)]
            told = self._told(row, at_s)
            ends = [end_s - at_s for end_s in self._progress.durations_s(*told)] if told else []
            by_told = [max(0.0, rest_s) for rest_s in ends] or history
            rest_s = wall_s - at_s
            row["marks"].append(
                {"at": mark, "told": told[0] if told else None}
                | {f"{name} by what it tells": v for name, v in _scores(by_told, rest_s, wall_s).items()}
                | {f"{name} by elapsed time": v for name, v in _scores(history, rest_s, wall_s).items()}
            )
        latest = {quarter(share): (share, at_s) for at_s, share, _ in row["told"]}
        self._progress.observe(latest.values(), wall_s)
        self._gaps.observe(key, wall_s)

    @staticmethod
    def _told(row: Row, at_s: float) -> tuple[float, float] | None:
        before = [(share, told_s) for told_s, share, _ in row["told"] if told_s <= at_s and share >= 0.01]
        return before[-1] if before else None


def _scores(samples: Sequence[float], rest_s: float, wall_s: float) -> dict[str, float]:
    middle_s = statistics.median(samples)
    spread = statistics.fmean(abs(a - b) for a in samples for b in samples)
    crps = statistics.fmean(abs(sample - rest_s) for sample in samples) - spread / 2
    slack_s = 0.02 * wall_s
    return {
        "error": abs(middle_s - rest_s) / wall_s,
        "CRPS": crps / wall_s,
        "inside": float(min(samples) - slack_s <= rest_s <= max(samples) + slack_s),
    }


FIGURES = tuple(
    f"{name} by {how}" for how in ("what it tells", "elapsed time") for name in ("error", "CRPS", "inside")
)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Means by tool and by group, at each mark."""
    places: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        places[row["group"], row["tool"]].append(row)
        places[row["group"], "all"].append(row)
        places["all", "all"].append(row)
    found = []
    for (group, tool), members in places.items():
        for index, mark in enumerate(MARKS):
            marks = [member["marks"][index] for member in members]
            figures = {name: statistics.fmean(m[name] for m in marks) for name in FIGURES}
            told = statistics.fmean(m["told"] is not None for m in marks)
            found.append(
                {"group": group, "tool": tool, "calls": len(marks), "at": mark, "told": told} | figures
            )
    return found


def show(found: Sequence[Row], console: Console) -> None:
    """One line a tool and mark."""
    table = Table(
        "tool",
        "calls",
        "at",
        "told in",
        "error, told",
        "error, time",
        "CRPS, told",
        "CRPS, time",
        "inside, told",
    )
    for row in found:
        name = row["tool"] if row["tool"] != "all" else f"{row['group']}: all"
        cells = [
            f"{row[f'{figure} by {how}']:.0%}"
            for figure in ("error", "CRPS")
            for how in ("what it tells", "elapsed time")
        ]
        inside = f"{row['inside by what it tells']:.0%}"
        table.add_row(name, str(row["calls"]), f"{row['at']:.0%}", f"{row['told']:.0%}", *cells, inside)
    console.print(table)


FLOOD = """
import os
lines = b"a line of the output of some tool\\n" * 1927
for _ in range({count}): os.write(1, lines)
"""


def cost(gib: float, sandbox: Sandbox) -> Row:
    """A tool that prints ``gib`` GiB at its fastest: CPU time of reading that, beside its own."""
    chunk = b"a line of the output of some tool\n" * 1927
    count = int(gib * GIB / len(chunk))
    spec = ToolSpec(argv=[sys.executable, "-S", "-c", FLOOD.format(count=count)], max_output_bytes=1 << 16)
    used = sandbox.run(spec).usage
    speeds = {}
    for name, command in (("pytest", "pytest"), ("unknown command", "./run.sh")):
        tracker = Tracker(programs((), command))
        began_s, read = time.thread_time(), 0
        while time.thread_time() - began_s < 0.5:
            tracker.feed(chunk, 1e9)
            read += len(chunk)
        speeds[name] = read / (time.thread_time() - began_s) / 1e6
    watch = Watch(spec, {}, None)
    chunks = int(gib * GIB / len(chunk))
    plain_s = _thread_s(lambda _chunk: None, chunk, chunks)
    watch.due_s = time.monotonic()
    reading_s = max(0.0, _thread_s(watch.output, chunk, chunks, watch.tick) - plain_s)
    return {
        "gib": gib,
        "tool_wall_s": used.wall_s,
        "tool_cpu_s": used.cpu_s,
        "reading_cpu_s": reading_s,
        "share_of_the_tools_cpu": reading_s / used.cpu_s,
        "mb_per_s_with_the_budget": chunks * len(chunk) / max(1e-9, reading_s) / 1e6,
        "mb_per_s_if_all_were_read": speeds,
    }


def _thread_s(
    take: Callable[[bytes], None], chunk: bytes, count: int, tick: Callable[[], None] | None = None
) -> float:
    """CPU seconds of giving so many chunks; with a tick after each thousandth part of them."""
    began_s = time.thread_time()
    for _ in range(1000):
        for _ in range(count // 1000):
            take(chunk)
        if tick is not None:
            tick()
    return time.thread_time() - began_s


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Runs of each made tool.")
@click.option("--task", "names", multiple=True, help="A bundled agent by its id; all if none is named.")
@click.option("--no-agents", is_flag=True, help="Only the made tools.")
@click.option(
    "--gib", default=10.0, show_default=True, help="Output of the tool by which reading is measured."
)
@click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), default=RESULT, show_default=True
)
def main(repeats: int, names: tuple[str, ...], no_agents: bool, gib: float, path: Path) -> None:
    """Run real tools, and say how well the rest of each was known."""
    console, began_s = Console(width=150), time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, Sandbox.open("bench-progress") as sandbox:
        reading = cost(gib, sandbox)
        rows += made_tools(repeats, sandbox, console)
        if not no_agents:
            try:
                rows += agents_commands(names or tasks.task_ids(), Path(folder), console)
            except tasks.TaskError as error:
                console.print(f"without the bundled agents: {error}", markup=False)
    estimates = Estimates()
    for row in rows:
        estimates.judge(row)
    found = summary(rows)
    show(found, console)
    console.print(
        f"reading {gib:g} GiB of output takes {reading['reading_cpu_s']:.2f} s of CPU, "
        f"{reading['share_of_the_tools_cpu']:.1%} of the tool's own {reading['tool_cpu_s']:.1f} s"
    )
    result = {
        "wall_s": time.monotonic() - began_s,
        "left_out": {tool.name: tool.missing for tool in TOOLS if tool.missing},
        "reading": reading,
        "summary": found,
        "calls": rows,
    }
    _found.keep(_found.headed("progress", result), path, console)


if __name__ == "__main__":
    main()
