"""Unmodified mini-swe-agent processes, one a program, each on a tree of its own.

Starting an agent costs two to three seconds of CPU for its imports alone. So all agents are started
first and wait at a ``Gate``, inside the constructor of their environment, which mini makes after its
imports and before its first call; then they are moved to the core of the tools, and let go together.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from agentsched.sdk.programs import HEADER
from agentsched.workloads import children
from agentsched.workloads.tasks import Task, task_variables

READY_SUFFIX = ".ready"
COMMAND_TIMEOUT_S = 180


class Gate:
    """Holds agents until all are there. The lock goes with this process, so nobody waits for ever."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._lock: TextIO = (folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def waiting(self) -> int:
        """How many agents have arrived."""
        return sum(1 for _ in self.folder.glob(f"*{READY_SUFFIX}"))

    def open(self) -> None:
        """Let all go, also those that come later. May be called twice."""
        self._lock.close()


def wait_at_gate(folder: Path, program: str) -> None:
    """An agent's side: say that it is there, and wait until the gate opens."""
    with (folder / "lock").open() as lock:
        (folder / f"{program}{READY_SUFFIX}").touch()
        fcntl.flock(lock, fcntl.LOCK_SH)


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent's work: its program id, its task, and its folder, in which ``repo`` is the tree."""

    program: str
    task: Task
    folder: Path

    @property
    def tree(self) -> Path:
        return self.folder / "repo"

    @property
    def trajectory(self) -> Path:
        return self.folder / "trajectory.json"

    @property
    def problem(self) -> str:
        # The same task may go to several agents. As programs of different users they must not share
        # their whole context in the engine's prefix cache, so each prompt begins differently.
        return f"[{self.program}] {self.task.problem_statement}"

    def start(self, *, url: str, gate: Gate, environment: Path, output: Path) -> subprocess.Popen[bytes]:
        """Start the agent's process; it calls the daemon at ``url`` once the gate is open."""
        return children.start(
            self._command(url, gate),
            output=output,
            cwd=self.tree,
            env=self._variables(url, environment),
        )

    def _command(self, url: str, gate: Gate) -> list[str]:
        settings = {
            "model.model_kwargs.api_base": f"{url}/v1",
            "model.model_kwargs.extra_headers": json.dumps({HEADER: self.program}),
            "environment.environment_class": "agentsched.workloads.gated.GatedEnvironment",
            "environment.timeout": str(COMMAND_TIMEOUT_S),
            "environment.gate": str(gate.folder),
        }
        return [
            *(sys.executable, "-m", "minisweagent", "-m", f"openai/recorded/{self.task.instance_id}"),
            *("-c", "mini.yaml"),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            *("-y", "--exit-immediately", "-t", self.problem, "-o", str(self.trajectory)),
        ]

    def _variables(self, url: str, environment: Path) -> dict[str, str]:
        home, temporary = self.folder / "home", self.folder / "tmp"
        for folder in (home, temporary):
            folder.mkdir(parents=True, exist_ok=True)
        return task_variables(environment) | {
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "MSWEA_GLOBAL_CONFIG_DIR": str(home),
            "MSWEA_CONFIGURED": "true",
            "MSWEA_SILENT_STARTUP": "1",
            "MSWEA_COST_TRACKING": "ignore_errors",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "OPENAI_API_KEY": "none",
            "NO_PROXY": "127.0.0.1,localhost",
            "AGENTSCHED_URL": url,
            "AGENTSCHED_PROGRAM": self.program,
        }

    def outcome(self) -> str:
        """How the agent ended, in mini-swe-agent's words: ``Submitted`` is good."""
        try:
            info = json.loads(self.trajectory.read_text())["info"]
        except (OSError, ValueError, KeyError):
            return "no trajectory"
        return str(info.get("exit_status") or "not finished")
