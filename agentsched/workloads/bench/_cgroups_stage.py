"""The stage of the benchmarks of tool control: a host of little memory, agents in it, and a record of it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from agentsched.workloads.bench._cgroups_agents import Outcome, Plan
from agentsched.workloads.host_leaf import HostLeaf

MIB = 1 << 20
TERMS: Mapping[str, object] = {"least_reserve_bytes": 96 * MIB}
"""The reserve of a host this small: for the interpreters of agents, watchdogs and controller in it."""


class Played(NamedTuple):
    """``outcome``: None if the agents' process was killed, as by the kernel. ``held_mean``: mean share of
    the host's memory that was held. ``log``: of the controller."""

    outcome: Outcome | None
    held_mean: float
    log: str


def environment(name: str, log: Path, *, control: bool, terms: Mapping[str, object]) -> dict[str, str]:
    """Of agents with a controller of their own, or none."""
    return {
        "AGENTSCHED_CONTROL": "on" if control else "off",
        "AGENTSCHED_CONTROL_NAME": f"bench-{os.getpid()}-{name}",
        "AGENTSCHED_CONTROL_LINGER_S": "0",
        "AGENTSCHED_CONTROL_TERMS": json.dumps({**TERMS, **terms}),
        "AGENTSCHED_CONTROL_LOG": str(log),
    }


def play(
    name: str,
    host_mib: int,
    plan: Plan,
    *,
    control: bool,
    terms: Mapping[str, object] | None = None,
    patience_s: float = 600.0,
) -> Played:
    """Have the agents of a plan work in a host of their own, with a controller of their own or none."""
    with tempfile.TemporaryDirectory() as folder, HostLeaf(f"bench-{name}", host_mib * MIB) as host:
        log = Path(folder, "control.log")
        argv = [sys.executable, "-m", "agentsched.workloads.bench._cgroups_agents"]
        process = host.start(argv, environment(name, log, control=control, terms=terms or {}))
        assert process.stdin is not None
        assert process.stdout is not None
        samples = _Samples(host)
        try:
            process.stdin.write(msgspec.json.encode(plan).decode() + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the agents of {name} did not start")
            samples.start()
            output, _ = process.communicate("go\n", timeout=patience_s)
        finally:
            samples.stop()
            if process.poll() is None:
                process.kill()
                process.wait()
        outcome = msgspec.json.decode(output, type=Outcome) if process.returncode == 0 else None
        text = log.read_text() if log.exists() else ""
        return Played(outcome, samples.mean(), text)


class _Samples(threading.Thread):
    """Looks at the host now and then."""

    def __init__(self, host: HostLeaf) -> None:
        super().__init__(daemon=True)
        self._host = host
        self._over = threading.Event()
        self._held: list[float] = []

    def run(self) -> None:
        while not self._over.wait(0.05):
            self._held.append(self._host.held_bytes / self._host.memory_bytes)

    def stop(self) -> None:
        self._over.set()
        if self.ident is not None:
            self.join()

    def mean(self) -> float:
        return sum(self._held) / len(self._held) if self._held else 0.0
