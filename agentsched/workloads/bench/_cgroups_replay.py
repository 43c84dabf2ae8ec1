"""Tool calls with recorded or generated use of memory, replayed in a host below the sum of their peaks.

Agents run their calls one after the other, for a fixed time, in four ways: with control; with static limits
that are the P99 of the call's class; with static limits that are the call's own peak (nobody knows that
before: a bound); and with nothing. Static limits are reservations: a call waits until its limit fits beside
the others, as a container's would. A call that is ended is tried again, three times in all.

Memory and time are scaled (``MEMORY``, ``TIME``); calls that never rise by ``LEAST_MB`` are left out, for
they do not matter for memory. Tools hold memory and sleep: CPU is not replayed.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agentsched.workloads.bench import _cgroups_stage as stage
from agentsched.workloads.bench._cgroups_agents import Agent, Outcome, Plan, Work

HOST_MIB = 640
AGENTS, HIGH = 12, 2
MEMORY, TIME = 0.25, 0.15
LEAST_MB, LEAST_S, MOST_S = 64.0, 1.0, 120.0
TOOL_MIB = 12
"""Of the interpreter that plays a tool."""

OVERHEAD_MIB = 128
"""Of agents, watchdogs and controller, which static limits must leave free."""

TERMS = {"grace_s": 0.15, "settle_s": 0.05, "pace_s": 0.05, "stall_s": 9.0}
"""The controller's own times, scaled by ``TIME`` as those of the calls are."""

WAYS = ("control", "static P99", "static own peak", "nothing")

# of generated calls: class -> (share, median s, spread of its log, median MB, spread, chance of a burst)
CLASSES = {
    "bash:test": (0.55, 8.0, 0.9, 110.0, 0.5, 0.30),
    "bash:install": (0.25, 7.0, 0.7, 95.0, 0.6, 0.10),
    "bash:build": (0.20, 6.0, 0.8, 100.0, 0.4, 0.20),
}
BURST_MB, BURST_S = (400.0, 1900.0), (1.0, 3.0)


def generated(seed: int, count: int = 400) -> list[Work]:
    """Calls of the shape that AgentCgroup found: mostly little, with bursts of seconds to many times that."""
    chance = random.Random(seed)
    names, shares = list(CLASSES), [values[0] for values in CLASSES.values()]
    found = []
    for _ in range(count):
        name = chance.choices(names, shares)[0]
        _, middle_s, spread_s, middle_mb, spread_mb, burst = CLASSES[name]
        length_s = min(MOST_S, max(LEAST_S, middle_s * math.exp(chance.gauss(0, spread_s))))
        level = max(LEAST_MB, middle_mb * math.exp(chance.gauss(0, spread_mb)))
        points = [(0.0, level / 3), (0.1 * length_s, level)]
        if chance.random() < burst:
            at_s = chance.uniform(0.15, 0.8) * length_s
            points += [(at_s, chance.uniform(*BURST_MB)), (at_s + chance.uniform(*BURST_S), level)]
        found.append(_work(name, points, max(length_s, points[-1][0] + 0.1)))
    return found


def recorded(folder: Path) -> list[Work]:
    """From ``*toolcalls*.jsonl.gz`` below a folder: memory above what was held when the call began."""
    found = []
    for path in sorted(folder.rglob("*toolcalls*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                call = json.loads(line)
                samples, length_s = call["samples"], min(MOST_S, call["duration_s"])
                if length_s < LEAST_S or len(samples) < 3:
                    continue
                base = samples[0][2]
                points = [(max(0.0, at), max(1.0, mb - base)) for at, _, mb in samples if at < length_s]
                if max(mb for _, mb in points) >= LEAST_MB:
                    found.append(_work(f"bash:{call['command_class'] or call['tool']}", points, length_s))
    return found


def _work(name: str, points: Sequence[tuple[float, float]], length_s: float) -> Work:
    profile = [(round(at * TIME, 3), max(1, round(mb * MEMORY))) for at, mb in points]
    return Work(name, [*profile, (round(length_s * TIME, 3), profile[-1][1])])


def _peak(work: Work) -> int:
    return max(mib for _, mib in work.profile) + TOOL_MIB


def plan(way: str, calls: Sequence[Work], seed: int, stop_s: float) -> Plan:
    """The same calls for every way of a seed."""
    by_class: dict[str, list[int]] = defaultdict(list)
    for work in calls:
        by_class[work.name].append(_peak(work))
    most = {name: sorted(peaks)[int(0.99 * (len(peaks) - 1))] for name, peaks in by_class.items()}
    room = HOST_MIB - OVERHEAD_MIB

    def limited(work: Work) -> Work:
        limit = {"static P99": most[work.name], "static own peak": _peak(work)}.get(way, 0)
        return Work(work.name, work.profile, min(limit, room))

    chance = random.Random(seed)
    agents = [
        Agent(
            f"agent-{number}",
            [limited(work) for work in chance.sample(calls, min(40, len(calls)))],
            priority=2 if number < HIGH else 0,
        )
        for number in range(AGENTS)
    ]
    return Plan(agents, admit_mib=room if way.startswith("static") else 0, stop_s=stop_s)


def measure(calls: Sequence[Work], repeats: int, stop_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """All ways in turn, with other calls in each round."""
    fitting = [work for work in calls if _peak(work) <= HOST_MIB - OVERHEAD_MIB - HOST_MIB // 8]
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in range(repeats):
        for way in WAYS:
            say(f"replay with {way}, round {seed + 1} of {repeats}")
            planned = plan(way, fitting, seed, stop_s)
            played = stage.play("replay", HOST_MIB, planned, control=way == "control", terms=TERMS)
            rows[way].append(_row(played))
    return {
        "host_mib": HOST_MIB,
        "agents": AGENTS,
        "calls": len(fitting),
        "left_out_too_big": len(calls) - len(fitting),
        "mean_peak_mib": round(statistics.fmean(map(_peak, fitting)), 1),
        "ways": {way: _mean(found) | {"rounds": found} for way, found in rows.items()},
    }


def _row(played: stage.Played) -> dict[str, Any]:
    outcome = played.outcome or Outcome([], [], 1.0)
    good = [task for task in outcome.tasks if task.ok]
    ended = [run for run in outcome.runs if not run.ok]
    high = {f"agent-{number}" for number in range(HIGH)}
    slow = sorted(task.whole_s / task.nominal_s for task in outcome.tasks if task.agent in high)
    return {
        "agents_survive": played.outcome is not None,
        "tasks": len(good),
        "tasks_per_min": round(60 * len(good) / outcome.wall_s, 1),
        "concurrency": round(sum(task.nominal_s for task in good) / outcome.wall_s, 2),
        "ended_calls": len(ended),
        "ended_by_kernel": sum(run.ending == "memory limit" for run in ended),
        "ended_untold": sum(not run.told for run in ended),
        "given_up": len(outcome.tasks) - len(good),
        "memory_held": round(played.held_mean, 3),
        "high_p95_slowdown": round(slow[int(0.95 * (len(slow) - 1))], 2) if slow else None,
    }


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for name in rows[0]:
        values = [float(row[name]) for row in rows if row[name] is not None]
        found[name] = round(statistics.fmean(values), 3) if values else None
    return found


# AgentCgroup's experiment: three agents, one of them more important, and a burst that does not fit.
THREE_MIB = 512


def _three() -> Plan:
    high = Work(
        "bash:test", [(0.0, 20), *((0.2 * step, 20 + 10 * step) for step in range(1, 21)), (6.0, 220)]
    )
    burst = Work("bash:test", [(0.0, 60), (1.5, 320), (4.5, 60), (6.0, 60)])
    steady = Work("bash:build", [(0.0, 120), (6.0, 120)])
    return Plan([Agent("high", [high], 3), Agent("burst", [burst]), Agent("steady", [steady])], tries=1)


def three_agents(repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Who survives, and how long the important one waits for memory, with control and with nothing."""
    found: dict[str, Any] = {}
    for way in ("control", "nothing") * repeats:
        say(f"three agents with {way}")
        played = stage.play("three", THREE_MIB, _three(), control=way == "control")
        runs = {run.agent: run for run in (played.outcome.runs if played.outcome else [])}
        row = found.setdefault(
            way, {"rounds": 0, "agents_survive": 0, "calls_done": 0, "high_done": 0, "high_p95_ms": []}
        )
        row["rounds"] += 1
        row["agents_survive"] += played.outcome is not None
        row["calls_done"] += sum(run.ok for run in runs.values())
        row["high_done"] += "high" in runs and runs["high"].ok
        row["high_p95_ms"] += (
            [round(1000 * runs["high"].p95_s, 3)] if "high" in runs and runs["high"].ok else []
        )
    return found
