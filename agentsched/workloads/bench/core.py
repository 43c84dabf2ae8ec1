"""How long the core takes to decide, by number of live programs.

For each policy and size a core is filled with live programs, most of them waiting or away, and then
fed whole calls (arrived, started, first token, finished) of one program after another. Rounds of the
policies are alternated; each figure is the median over rounds of the mean time of one ``handle``.
The baseline is ``fcfs-lru``, which decides next to nothing: the ratio is what deciding costs.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from agentsched.core import POLICY_NAMES, Core, make_policy
from agentsched.core import events as ev

CAPACITY_TOKENS = 450_000
CALLS_A_ROUND = 25


def loaded_core(policy: str, programs: int) -> Core:
    """A core with so many live programs, each with one call done or waiting."""
    core = Core(make_policy(policy))
    core.handle(0.0, ev.EngineAttached(engine="e0", capacity_tokens=CAPACITY_TOKENS, block_tokens=16))
    for number in range(programs):
        core.handle(0.0, ev.ProgramOpened(program=f"p{number}"))
        core.handle(0.0, arrived(f"p{number}", 0))
    return core


def arrived(program: str, index: int) -> ev.CallArrived:
    return ev.CallArrived(
        call=f"{program}/{index}", program=program, prompt_tokens=2_000 + 300 * index, max_output_tokens=200
    )


def one_round(core: Core, index: int) -> float:
    """Mean seconds of one ``handle`` over whole calls of the first seated programs."""
    seated = core.state.seated("e0")[:CALLS_A_ROUND]
    events: list[ev.AnyEvent] = []
    for program in seated:
        call = f"{program.name}/{index}"
        ref = ev.ToolCallRef(tool_call=f"{call}/t", tool="bash")
        finished = ev.CallFinished(
            call=call,
            prompt_tokens=2_000 + 300 * index,
            cached_tokens=0,
            output_tokens=100,
            tool_calls=(ref,),
        )
        events += [
            ev.CallStarted(call=call, cached_tokens=0),
            ev.FirstToken(call=call),
            finished,
            arrived(program.name, index + 1),
        ]
    begin = time.perf_counter()
    for event in events:
        core.handle(float(index), event)
    return (time.perf_counter() - begin) / len(events)


@click.command()
@click.option("--programs", "sizes", multiple=True, type=int, default=(10, 100, 1_000), show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Alternated rounds a policy and size.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/bench/core.json"), show_default=True
)
def main(sizes: tuple[int, ...], rounds: int, out: Path) -> None:
    """Time of core.handle, by policy and number of live programs."""
    table = Table("live programs", "policy", "us a decision", "spread", "ratio to fcfs-lru")
    rows = []
    for size in sizes:
        cores = {policy: loaded_core(policy, size) for policy in POLICY_NAMES}
        took: dict[str, list[float]] = {policy: [] for policy in POLICY_NAMES}
        for index in range(rounds):
            for policy, core in cores.items():
                took[policy].append(one_round(core, index))
        base = statistics.median(took["fcfs-lru"])
        for policy, seconds in took.items():
            us = [1e6 * second for second in seconds]
            middle, ratio = statistics.median(us), statistics.median(seconds) / base
            rows.append(
                {"programs": size, "policy": policy, "us": middle, "us_all": us, "ratio_to_fcfs_lru": ratio}
            )
            table.add_row(
                f"{size:,}", policy, f"{middle:.1f}", f"{min(us):.1f}-{max(us):.1f}", f"{ratio:.2f}"
            )
    Console().print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    host = {"machine": platform.machine(), "python": platform.python_version(), "system": platform.platform()}
    out.write_text(json.dumps({"host": host, "decisions": rows}, indent=1) + "\n")
    Console().print(f"written to {out}")


if __name__ == "__main__":
    main()
