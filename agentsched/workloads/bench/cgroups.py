"""What the sandbox costs a tool call, how fast its controller reacts, what it is worth when memory is short.

Parts, each beside its baseline in the same run, in turn: ``cost`` (bare fork and exec; calls a second; live
leaves), ``reaction`` (events beside polling), ``three`` (AgentCgroup's experiment: three agents and a burst,
with control and with nothing), ``replay`` (many agents in a host below the sum of their peaks: with control,
with static limits, with nothing), ``neighbour`` (one that needs a core, beside tools that take all).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from agentsched.cgroups import HostRefused, Sandbox
from agentsched.workloads.bench import (
    _cgroups_cost,
    _cgroups_neighbour,
    _cgroups_reaction,
    _cgroups_replay,
    _cgroups_report,
    _found,
)

RESULT = Path("out/bench/cgroups.json")
PARTS = ("cost", "reaction", "three", "replay", "neighbour")

Goals = dict[str, dict[str, Any]]


def _goal(value: float | None, want: str, met: bool | None) -> dict[str, Any]:
    return {"value": value, "want": want, "met": bool(met)}


def _at_most(value: float | None, most: float, unit: str = "") -> dict[str, Any]:
    return _goal(value, f"<= {most:g}{unit}", value is not None and value <= most)


def _at_least(value: float | None, least: float, unit: str = "") -> dict[str, Any]:
    return _goal(value, f">= {least:g}{unit}", value is not None and value >= least)


def goals(parts: dict[str, Any]) -> Goals:
    """What is wanted of each part that ran."""
    found: Goals = {}
    if cost := parts.get("cost"):
        added = cost["time"]["added"]
        found["added time, median ms"] = _at_most(added["sandbox"]["median_ms"], 2)
        isolated = added.get("sandbox, isolated", {}).get("median_ms")
        found["added time, isolated, median ms"] = _at_most(isolated, 10)
        found["calls a second, of 200 asked"] = _at_least(cost["sustained"]["done_per_s"], 198)
        found["live leaves"] = _at_least(cost["live"]["leaves"], 1000)
    if reaction := parts.get("reaction"):
        found["reaction by events, P99 ms"] = _at_most(reaction["events"]["p99_ms"], 20)
        found["bursts noticed too late, by events"] = _at_most(reaction["events"]["late"], 0)
    if three := parts.get("three"):
        control = three["control"]
        found["three agents: survive"] = _at_least(control["agents_survive"] / control["rounds"], 1)
        found["three agents: the important call ends well"] = _at_least(
            control["high_done"] / control["rounds"], 1
        )
    if replay := parts.get("replay"):
        found |= _replay_goals(replay["ways"])
    if neighbour := parts.get("neighbour"):
        worst = max(figures["slowdown"] for figures in neighbour.values())
        found["slowdown of a neighbour, worst"] = _at_most(worst, 1.5, "x")
    return found


def _replay_goals(ways: dict[str, Any]) -> Goals:
    control = ways["control"]

    def ratio(way: str, figure: str) -> float | None:
        base = ways[way][figure]
        return round(control[figure] / base, 2) if base and control[figure] is not None else None

    slow = ratio("nothing", "high_p95_slowdown")
    return {
        "replay: agents survive": _at_least(control["agents_survive"], 1),
        "replay: calls ended untold": _at_most(control["ended_untold"], 0),
        "replay: concurrency over static P99": _at_least(ratio("static P99", "concurrency"), 1.5, "x"),
        "replay: concurrency over static own peak": _at_least(
            ratio("static own peak", "concurrency"), 1.2, "x"
        ),
        "replay: P95 of important calls over nothing": _at_most(slow, 0.71, "x"),
    }


def run(parts: tuple[str, ...], *, quick: bool, traces: Path | None) -> dict[str, Any]:
    """All parts that are named, as one record."""

    def say(text: str) -> None:
        click.echo(f"  {text}", err=True)

    found: dict[str, Any] = {}
    if "cost" in parts:
        say("cost: added time")
        found["cost"] = {"time": _cgroups_cost.added(40 if quick else 300)}
        say("cost: 200 calls a second")
        found["cost"]["sustained"] = _cgroups_cost.sustained(200, 3 if quick else 20)
        say("cost: 1,000 live leaves")
        found["cost"]["live"] = _cgroups_cost.live(1000)
    if "reaction" in parts:
        found["reaction"] = _cgroups_reaction.measure(3 if quick else 50, say)
    if "three" in parts:
        found["three"] = _cgroups_replay.three_agents(1 if quick else 10, say)
    if "replay" in parts:
        calls = _cgroups_replay.recorded(traces) if traces else _cgroups_replay.generated(1)
        if not calls:
            raise click.UsageError(f"no *toolcalls*.jsonl.gz with tool calls below {traces}")
        found["replay"] = {"of": "recorded calls" if traces else "generated calls"}
        found["replay"] |= _cgroups_replay.measure(calls, 1 if quick else 4, 12.0 if quick else 45.0, say)
    if "neighbour" in parts:
        found["neighbour"] = _cgroups_neighbour.measure(1 if quick else 5, say)
    return found


@click.command()
@click.option("--quick", is_flag=True, help="Few repeats: about three minutes, of which little can be said.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Only this part; may be given again.")
@click.option(
    "--traces",
    envvar="AGENTSCHED_TRACES",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of recorded tool calls (*toolcalls*.jsonl.gz, below it too) to replay instead of generated "
    "ones.  [env AGENTSCHED_TRACES]",
)
@click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), default=RESULT, show_default=True
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the tables there as Markdown too.",
)
def main(quick: bool, only: tuple[str, ...], traces: Path | None, path: Path, report: Path | None) -> None:
    """Measure the sandbox and its controller. Needs root and control groups with a memory controller."""
    with Sandbox.open("bench") as sandbox:
        if not sandbox.capabilities.memory_limit:
            raise click.ClickException("; ".join(f"{name}: {why}" for name, why in sandbox.refused))
        backend = sandbox.capabilities.backend
    began_s = time.monotonic()
    try:
        parts = run(only or PARTS, quick=quick, traces=traces)
    except HostRefused as error:
        raise click.ClickException(str(error)) from error
    took_s = round(time.monotonic() - began_s, 1)
    found = {"backend": backend, "took_s": took_s, "goals": goals(parts), "parts": parts}
    result = _found.headed("cgroups", found)
    text = _cgroups_report.markdown(result)
    click.echo(text)
    _found.keep(result, path, Console())
    if report is not None:
        report.write_text(text)


if __name__ == "__main__":
    main()
