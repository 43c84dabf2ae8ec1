"""From a burst crossing its threshold to the controller's action, by what tells the controller.

A tool in a host of little memory takes memory at a steady rate and says how much all tools held, and when.
The controller's log says at what use it looks, and when it had set a cap. Looks that come by themselves are
switched off, so that only the source counts. A burst that the kernel ended first is *late*.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentsched.workloads.bench import _cgroups_stage as stage
from agentsched.workloads.host_leaf import HostLeaf

HOST_MIB = 1024
SOURCES = ("events", "polling:0.01", "polling:0.1", "polling:1")
"""As ``AGENTSCHED_CONTROL_SOURCE`` names them; another source is another name here."""

TERMS = {"calm_look_s": 1000.0, "step_bytes": 1 << 20}
PATIENCE_S = 60.0
IN_TIME_S = 0.5
"""After the last step: a tool that is capped makes no more."""

AGENT = """
import json, sys, time
from agentsched.cgroups import Sandbox, ToolSpec
tool, bursts = sys.argv[1], int(sys.argv[2])
with Sandbox.open("burst") as sandbox:
    for _ in range(400):
        sandbox.run(ToolSpec(argv=["sleep", "0.05"]))
        if sandbox.controlled.connected: break
    else: sys.exit("no controller came up")
    for _ in range(bursts):
        argv = [sys.executable, "-I", "-S", "-c", tool, sys.argv[3]]
        said = sandbox.run(ToolSpec(argv=argv, timeout_s=4.0))
        print(json.dumps([said.timed_out, said.text]), flush=True)
"""

TOOL = """
import os, sys, time
usage = os.open(sys.argv[1], os.O_RDONLY)
held = []
time.sleep(0.3)
def take(size):
    held.append(bytearray(b"x") * size)
    return int(os.pread(usage, 32, 0))
while take(1 << 20) < 540 << 20: pass
began, size, count = time.monotonic(), 1 << 17, 0
while True:
    now = take(size)
    os.write(1, b"%.6f %d\\n" % (time.time(), now))
    count += 1
    time.sleep(max(0.0, began + count * size / (150 << 20) - time.monotonic()))
"""
"""After a quick start, 150 MiB a second in steps of 128 KiB."""

_CAP = re.compile(r"^(\d+\.\d+) Cap\(.*limit_bytes=\d", re.MULTILINE)
_WATCH = re.compile(r"^(\d+\.\d+) looks when \S+ holds (\d+) bytes", re.MULTILINE)


def measure(bursts: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Reaction times by source, milliseconds; sources in turn."""
    found: dict[str, list[float]] = {source: [] for source in SOURCES}
    late = dict.fromkeys(SOURCES, 0)
    rounds = max(1, bursts // 5)
    for number in range(rounds):
        for source in SOURCES:
            say(f"reaction by {source}, round {number + 1} of {rounds}")
            times, missed = _bursts(source, 5 if rounds > 1 else bursts)
            found[source] += times
            late[source] += missed
    return {source: _figures(found[source], late[source]) for source in SOURCES}


def _bursts(source: str, count: int) -> tuple[list[float], int]:
    with tempfile.TemporaryDirectory() as folder, HostLeaf("bench-reaction", HOST_MIB << 20) as host:
        log = Path(folder, "log")
        environment = stage.environment("reaction", log, control=True, terms=TERMS)
        file = "memory.usage_in_bytes" if host.v1 else "memory.current"
        tree = f"{host.folder}/agentsched/{file}"
        process = host.start(
            [sys.executable, "-c", AGENT, TOOL, str(count), tree],
            environment | {"AGENTSCHED_CONTROL_SOURCE": source},
        )
        output, _ = process.communicate(timeout=PATIENCE_S)
        text = log.read_text()
    caps = [float(when) for when in _CAP.findall(text)]
    watched = [(float(when), int(limit)) for when, limit in _WATCH.findall(text)]
    times, late = [], 0
    for line in output.splitlines():
        capped, said = json.loads(line)
        steps = [(float(when), int(used)) for when, used in (row.split() for row in said.splitlines())]
        crossed_s, cap_s = _crossed(steps, caps, watched)
        if crossed_s is None:
            continue  # a busy machine: it did not come that far in its time
        if cap_s is None or not capped:
            late += 1
        else:
            times.append(max(0.0, cap_s - crossed_s))
    return times, late


def _crossed(
    steps: list[tuple[float, int]], caps: list[float], watched: list[tuple[float, int]]
) -> tuple[float | None, float | None]:
    """When the threshold was crossed, and when the cap was set that followed, if there was one in time. The
    threshold is the last that was set before."""
    if not steps:
        return None, None
    end_s = steps[-1][0] + IN_TIME_S
    cap_s = next((when for when in caps if steps[0][0] < when < end_s), None)
    limits = [limit for when, limit in watched if when < (cap_s or end_s)]
    if not limits:
        return None, None
    return next((when for when, used in steps if used > limits[-1]), None), cap_s


def _figures(times: list[float], late: int) -> dict[str, Any]:
    ordered = sorted(times)

    def at(share: float) -> float | None:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else None

    return {
        "bursts": len(times) + late,
        "late": late,
        "p50_ms": at(0.5),
        "p95_ms": at(0.95),
        "p99_ms": at(0.99),
    }
