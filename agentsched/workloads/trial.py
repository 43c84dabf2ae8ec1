"""One run of the demo: one policy, a fresh daemon, all agents at once, and their work graded."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from agentsched.cgroups import Sandbox, SandboxError
from agentsched.core.log import Entry, read
from agentsched.workloads import children, cores
from agentsched.workloads.agents import Agent, Gate
from agentsched.workloads.board import Board, Line
from agentsched.workloads.served import Daemon, DaemonFailed
from agentsched.workloads.tasks import Grade, Task, grade, load_turns

ARRIVAL_TIMEOUT_S = 180.0
POLL_S = 0.5


class TrialFailed(Exception):
    """The run could not be brought to its end; the message says why and where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What to run. ``engine`` are the daemon's arguments that choose engine, model and KV capacity;
    ``trees`` are prepared trees by task; ``logs`` is this run's folder of logs (made if absent)."""

    policy: str
    agents: tuple[tuple[str, Task], ...]
    engine: tuple[str, ...]
    trees: dict[str, Path]
    environment: Path
    logs: Path
    limit_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of it: the event log, and one grade an agent."""

    entries: list[Entry]
    grades: dict[str, Grade]


def run_trial(trial: Trial, *, place: Path, board: Board) -> Finished:
    """Run it in the scratch folder ``place``, which must be new. Everything that was started has
    ended on return, also on exceptions. Raises ``TrialFailed``, ``DaemonFailed`` and ``OSError``."""
    trial.logs.mkdir(parents=True, exist_ok=True)
    log = trial.logs / "events.jsonl"
    engine_core, tool_core = cores.choose_cores()
    board.say("copying trees")
    agents = [Agent(program, task, place / program) for program, task in trial.agents]
    for agent in agents:
        shutil.copytree(trial.trees[agent.task.instance_id], agent.tree, symlinks=True)
    gate = Gate(place / "gate")
    arguments = ["--policy", trial.policy, *trial.engine]
    arguments += ["--engine-core", str(engine_core), "--log", str(log)]
    started: list[subprocess.Popen[bytes]] = []
    daemon = Daemon(arguments, folder=trial.logs, core=tool_core)
    try:
        board.say("starting daemon and engine")
        url = daemon.wait_ready()
        for agent in agents:
            output = trial.logs / f"{agent.program}.txt"
            started.append(agent.start(url=url, gate=gate, environment=trial.environment, output=output))
        _await_agents(trial, gate, started, board)
        for process in started:
            cores.confine(process.pid, tool_core, descendants=True)
        gate.open()
        _follow(trial, agents, started, daemon, board)
    finally:
        gate.open()
        children.end(started)
        daemon.end()
        for agent in agents:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(agent.trajectory, trial.logs / f"{agent.program}.traj.json")
    board.say("running hidden tests")
    return Finished(_entries(log), _grades(agents, trial.environment))


def _await_agents(trial: Trial, gate: Gate, started: Sequence[subprocess.Popen[bytes]], board: Board) -> None:
    deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
    arrived = -1
    while (waiting := gate.waiting()) < len(started):
        if waiting != arrived:
            arrived = waiting
            board.say(f"{arrived} of {len(started)} agents have started")
        for (program, _), process in zip(trial.agents, started, strict=True):
            if process.poll() is not None:
                output = trial.logs / f"{program}.txt"
                raise TrialFailed(
                    f"agent {program} ended with status {process.returncode} before its first call; "
                    f"it said:\n{children.tail(output)}"
                )
        if time.monotonic() > deadline:
            raise TrialFailed(f"only {waiting} of {len(started)} agents started; see {trial.logs}")
        time.sleep(0.1)


def _follow(
    trial: Trial,
    agents: Sequence[Agent],
    started: Sequence[subprocess.Popen[bytes]],
    daemon: Daemon,
    board: Board,
) -> None:
    """Show progress until every agent's process has ended."""
    totals = [len(load_turns(agent.task.instance_id)) for agent in agents]
    seen: dict[str, tuple[int, str, int]] = {}
    deadline = time.monotonic() + trial.limit_s
    while True:
        daemon.check()
        for view in daemon.programs():
            held = int(view.get("held_device_tokens", 0))
            seen[str(view["program"])] = (int(view["calls_done"]), str(view["state"]), held)
        board.show(list(_lines(agents, totals, started, seen)))
        if all(process.poll() is not None for process in started):
            return
        if time.monotonic() > deadline:
            late = [a.program for a, p in zip(agents, started, strict=True) if p.poll() is None]
            raise TrialFailed(f"{', '.join(late)} did not end within {trial.limit_s:.0f} s; see {trial.logs}")
        time.sleep(POLL_S)


def _lines(
    agents: Sequence[Agent],
    totals: Sequence[int],
    started: Sequence[subprocess.Popen[bytes]],
    seen: dict[str, tuple[int, str, int]],
) -> Iterator[Line]:
    for agent, total, process in zip(agents, totals, started, strict=True):
        done, state, held = seen.get(agent.program, (0, "starting", 0))
        if process.poll() is not None:
            done, state, held = (total, "done", 0) if process.returncode == 0 else (done, "failed", 0)
        yield Line(agent.program, agent.task.instance_id, done, total, state, held)


def _entries(log: Path) -> list[Entry]:
    with log.open("rb") as lines:
        return list(read(lines)[1])


def _grades(agents: Sequence[Agent], environment: Path) -> dict[str, Grade]:
    def check(agent: Agent) -> Grade:
        try:
            found = grade(agent.task, agent.tree, environment, sandbox)
        except SandboxError as error:
            raise TrialFailed(f"hidden tests of {agent.program} cannot be run: {error}") from error
        outcome = agent.outcome()
        if outcome == "Submitted":
            return found
        return Grade(
            instance_id=found.instance_id,
            passed=False,
            missing=found.missing,
            output=f"the agent ended as {outcome!r}\n{found.output}",
        )

    # In this order: when this is interrupted, closing the sandbox ends what the threads wait for.
    with ThreadPoolExecutor(2) as pool, Sandbox.open("hidden-tests") as sandbox:
        return dict(zip([agent.program for agent in agents], pool.map(check, agents), strict=True))


__all__ = ["Trial", "Finished", "run_trial", "TrialFailed", "DaemonFailed"]
