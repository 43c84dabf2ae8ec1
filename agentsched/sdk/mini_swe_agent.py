"""An environment for mini-swe-agent that runs every command in a sandbox leaf of its own.

Use it with ``mini`` or ``mini-extra`` unchanged::

    mini -c mini.yaml -c environment.environment_class=agentsched.sdk.mini_swe_agent.SandboxEnvironment ...

or with the file ``mini.yaml`` beside this one as a second ``-c``.

mini-swe-agent passes the id of the tool call that it answers to ``execute``; it goes on to the sandbox
and into the reports, which joins the LLM call and the process tree that it caused exactly.

The program's id comes from ``program`` in the environment's configuration, else from the variable
``AGENTSCHED_PROGRAM``, else it is made up; the daemon then knows the program by its tool calls alone.
"""

from __future__ import annotations

import atexit
import functools
import os
import platform
import subprocess
import threading
import uuid
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
from minisweagent.exceptions import Submitted
from minisweagent.utils.serialize import recursive_merge
from pydantic import BaseModel

from agentsched.cgroups import Isolation, Sandbox, SandboxError, ToolResult, ToolSpec
from agentsched.core.events import ProgramClosed
from agentsched.sdk.reporting import Reporter, reporter
from agentsched.sdk.tool_runs import run_reported

SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
TOOL = "bash"
CLOSING = "agentsched-closing"
"""Name of threads that end programs whose environments are gone."""


class SandboxEnvironmentConfig(BaseModel):
    """``cwd``, ``env`` and ``timeout`` (seconds a command) mean what they do in mini's own local
    environment. ``backend`` names a sandbox backend; ``auto`` takes the best that there is.
    ``isolation``: fields of ``agentsched.cgroups.Isolation``, for a disk of its own."""

    cwd: str = ""
    env: dict[str, str] = {}
    timeout: float = 30
    program: str = ""
    backend: str = "auto"
    isolation: dict[str, Any] | None = None


class SandboxEnvironment:
    """mini-swe-agent's ``Environment`` on a sandbox; reports each command to the daemon."""

    def __init__(
        self, *, config_class: type[SandboxEnvironmentConfig] = SandboxEnvironmentConfig, **kwargs: Any
    ) -> None:
        self.config = config_class(**kwargs)
        self.program = (
            self.config.program or os.environ.get("AGENTSCHED_PROGRAM") or f"mini-{uuid.uuid4().hex[:12]}"
        )
        asked = self.config.isolation
        self._sandbox = Sandbox.open(
            program=self.program,
            backend=self.config.backend,
            isolation=None if asked is None else msgspec.convert(asked, Isolation, strict=False),
        )
        self._ended = threading.Event()
        # Also at the interpreter's exit, so that an agent that gives up ends its program too.
        closing = functools.partial(_close, self._sandbox, self.program, self._ended, reporter())
        atexit.register(closing)
        weakref.finalize(self, _close_apart, closing).atexit = False

    def execute(
        self, action: dict[str, Any], cwd: str = "", *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Run the action's command and return output, returncode and exception_info.

        Raises ``Submitted`` when the command prints mini-swe-agent's mark of the end.
        """
        command = action.get("command", "")
        call = action.get("tool_call_id") or f"{self.program}-{uuid.uuid4().hex[:12]}"
        limit_s = timeout or self.config.timeout
        self._ended.clear()  # after a submission mini's user may give the agent another task
        try:
            result = self._run(command, call, cwd, limit_s)
        except (SandboxError, OSError) as error:
            return _failure(error, "")
        note = f"agentsched: {result.feedback.note}" if result.feedback.note else ""
        if result.timed_out:
            failed = _failure(subprocess.TimeoutExpired(command, limit_s), result.text)
            failed["exception_info"] += f"\n{note}"
            return failed
        output = {"output": result.text, "returncode": result.exit_status, "exception_info": note}
        self._check_submitted(output)
        return output

    def _run(self, command: str, call: str, cwd: str, limit_s: float) -> ToolResult:
        spec = ToolSpec(
            command=command,
            cwd=cwd or self.config.cwd or os.getcwd(),
            env=os.environ | self.config.env,
            tool_call=call,
            tool=TOOL,
            timeout_s=limit_s,
        )
        return run_reported(self._sandbox, spec)

    def _check_submitted(self, output: dict[str, Any]) -> None:
        first, _, rest = output["output"].lstrip().partition("\n")
        if first.strip() != SUBMIT or output["returncode"] != 0:
            return
        _end(self.program, self._ended, reporter())
        raise Submitted(
            {"role": "exit", "content": rest, "extra": {"exit_status": "Submitted", "submission": rest}}
        )

    def get_template_vars(self, **kwargs: Any) -> dict[str, Any]:
        """What prompt templates may use: configuration, system, environment variables."""
        merged = recursive_merge(
            self.config.model_dump(), platform.uname()._asdict(), dict(os.environ), kwargs
        )
        return dict(merged)

    def serialize(self) -> dict[str, Any]:
        """What goes into the trajectory file about this environment."""
        return {
            "info": {
                "config": {
                    "environment": self.config.model_dump(mode="json"),
                    "environment_type": f"{type(self).__module__}.{type(self).__name__}",
                    "program": self.program,
                    "sandbox_backend": self._sandbox.capabilities.backend,
                }
            }
        }


def _failure(error: Exception, output: str) -> dict[str, Any]:
    """The form in which mini-swe-agent's own environments tell the model of an error."""
    return {
        "output": output,
        "returncode": -1,
        "exception_info": f"An error occurred while executing the command: {error}",
        "extra": {"exception_type": type(error).__name__, "exception": str(error)},
    }


def _end(program: str, ended: threading.Event, daemon: Reporter) -> None:
    if not ended.is_set():
        ended.set()
        daemon.report(ProgramClosed(program=program))
        daemon.flush()


def _close_apart(closing: Callable[[], None]) -> None:
    """The collector comes wherever it likes, also under a lock that closing needs: hence a thread."""
    atexit.unregister(closing)
    threading.Thread(target=closing, name=CLOSING).start()


def _close(sandbox: Sandbox, program: str, ended: threading.Event, daemon: Reporter) -> None:
    """``daemon``: the one that the program was opened with, whichever is in use by now."""
    sandbox.close()
    _end(program, ended, daemon)
