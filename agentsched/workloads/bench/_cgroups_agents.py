"""Agents for the benchmarks of tool control: processes that run tool calls in a host of little memory.

As a module it reads one ``Plan`` as JSON from stdin, works it off, and prints one ``Outcome`` as JSON. It is
run inside a ``HostLeaf``, beside its tools, as an agent is.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque

import msgspec

from agentsched.cgroups import Ending, Limits, Sandbox, SandboxError, ToolSpec

MIB = 1 << 20

TOOL = """
import json, sys, time
profile, step = json.loads(sys.argv[1]), 1 << 20
held, began, lateness = [], time.monotonic(), []
for at_s, mib in profile:
    pause = began + at_s - time.monotonic()
    if pause > 0: time.sleep(pause)
    while len(held) < mib:
        t = time.monotonic(); held.append(bytearray(b"x") * step); lateness.append(time.monotonic() - t)
    del held[int(mib):]
print(json.dumps(sorted(lateness)))
"""
"""Follows a profile: [seconds, MiB held from then on], the last being its end. Prints how long each MiB
took."""


class Work(msgspec.Struct, frozen=True):
    """One tool call. ``limit_mib``: a static limit, 0 for none; admission counts it too."""

    name: str
    profile: list[tuple[float, int]]
    limit_mib: int = 0

    @property
    def nominal_s(self) -> float:
        """How long it takes with nobody beside."""
        return self.profile[-1][0]


class Agent(msgspec.Struct, frozen=True):
    """Its calls, in order; over and over, if the plan has an end in time."""

    name: str
    calls: list[Work]
    priority: int = 0


class Plan(msgspec.Struct, frozen=True):
    """``admit_mib``: calls wait until their static limits together fit into that; 0: they do not wait.
    ``tries``: of a call that was ended for memory. ``stop_s``: begin no call after that; 0: each once."""

    agents: list[Agent]
    admit_mib: int = 0
    tries: int = 3
    stop_s: float = 0.0


class Run(msgspec.Struct, frozen=True):
    """One try of one call. ``waited_s``: for admission. ``p95_s``: of the time that a MiB took."""

    agent: str
    name: str
    ok: bool
    ending: str
    told: bool
    began_s: float
    waited_s: float
    wall_s: float
    nominal_s: float
    p95_s: float = 0.0


class Task(msgspec.Struct, frozen=True):
    """One call with all its tries. ``whole_s``: from its arrival to its end, waits and all."""

    agent: str
    ok: bool
    whole_s: float
    nominal_s: float


class Outcome(msgspec.Struct, frozen=True):
    """What came of a plan."""

    runs: list[Run]
    tasks: list[Task]
    wall_s: float


class _Admission:
    """Lets calls in first come, first served, as long as their limits fit."""

    def __init__(self, mib: int) -> None:
        self._free = mib
        self._line: deque[int] = deque()
        self._numbers = 0
        self._changed = threading.Condition()

    def enter(self, mib: int) -> None:
        with self._changed:
            self._numbers += 1
            number = self._numbers
            self._line.append(number)
            self._changed.wait_for(lambda: self._line[0] == number and mib <= self._free)
            self._line.popleft()
            self._free -= mib
            self._changed.notify_all()

    def leave(self, mib: int) -> None:
        with self._changed:
            self._free += mib
            self._changed.notify_all()


class _Crew:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._admission = _Admission(plan.admit_mib) if plan.admit_mib else None
        self._began_s = time.monotonic()
        self.runs: list[Run] = []
        self.tasks: list[Task] = []
        self._lock = threading.Lock()

    def act(self, agent: Agent) -> None:
        with Sandbox.open(agent.name, priority=agent.priority) as sandbox:
            while True:
                for work in agent.calls:
                    if self._plan.stop_s and time.monotonic() - self._began_s > self._plan.stop_s:
                        return
                    arrived_s = time.monotonic()
                    ok = any(self._try(sandbox, agent, work) for _ in range(self._plan.tries))
                    task = Task(agent.name, ok, time.monotonic() - arrived_s, work.nominal_s)
                    with self._lock:
                        self.tasks.append(task)
                if not self._plan.stop_s:
                    return

    def _try(self, sandbox: Sandbox, agent: Agent, work: Work) -> bool:
        arrived_s = time.monotonic()
        if self._admission is not None:
            self._admission.enter(work.limit_mib)
        began_s = time.monotonic()
        limits = Limits(memory_bytes=work.limit_mib * MIB) if work.limit_mib else Limits()
        argv = [sys.executable, "-I", "-S", "-c", TOOL, json.dumps(work.profile)]
        try:
            result = sandbox.run(ToolSpec(argv=argv, tool=work.name, limits=limits, timeout_s=300))
        finally:
            if self._admission is not None:
                self._admission.leave(work.limit_mib)
        ok = result.exit_status == 0
        took = json.loads(result.text) if ok else []
        run = Run(
            agent=agent.name,
            name=work.name,
            ok=ok,
            ending=result.feedback.ending.value,
            told=result.feedback.ending is Ending.EXITED or bool(result.feedback.note),
            began_s=began_s - self._began_s,
            waited_s=began_s - arrived_s,
            wall_s=time.monotonic() - began_s,
            nominal_s=work.nominal_s,
            p95_s=took[int(0.95 * len(took))] if took else 0.0,
        )
        with self._lock:
            self.runs.append(run)
        return ok


def main() -> None:
    """Work one plan off. The first line printed is ``ready``, before anything runs but a warm-up."""
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    with Sandbox.open("warm-up") as sandbox:
        for _ in range(200):
            sandbox.run(ToolSpec(argv=["sleep", "0.05"]))
            if sandbox.controlled.connected or not sandbox.controlled.on:
                break
        else:
            raise SandboxError("no controller came up")
    print("ready", flush=True)
    sys.stdin.buffer.readline()
    crew, began_s = _Crew(plan), time.monotonic()
    threads = [threading.Thread(target=crew.act, args=(agent,)) for agent in plan.agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome = Outcome(crew.runs, crew.tasks, time.monotonic() - began_s)
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")


if __name__ == "__main__":
    main()
