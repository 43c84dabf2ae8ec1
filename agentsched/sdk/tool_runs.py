"""Reports one tool call to the daemon: its start, what is seen of it while it runs, its end."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentsched.core.events import ToolFinished, ToolProgressed, ToolStarted
from agentsched.sdk.reporting import Reporter, reporter

if TYPE_CHECKING:
    from agentsched.cgroups import Hint, Progress, Sandbox, ToolResult, ToolSpec

FAILED = 1
INTERRUPTED = 128 + 2
"""Exit status of a tool that was cancelled, or interrupted from the keyboard."""

_SANDBOX_FAILED = 255

_log = logging.getLogger("agentsched.sdk")


def status_of(error: BaseException | None) -> int:
    """The exit status of a function that raised ``error``, or returned."""
    if error is None:
        return 0
    return FAILED if isinstance(error, Exception) else INTERRUPTED


class Run:
    """One call's reports. It has started when this is made; ``end`` comes last, and counts once."""

    def __init__(
        self,
        reporter: Reporter,
        program: str,
        tool_call: str,
        tool: str,
        *,
        command: str = "",
        expected_memory_bytes: int = 0,
    ) -> None:
        self.program = program
        self.tool_call = tool_call
        self._reporter = reporter
        self._began_s = time.monotonic()
        self._ended = False
        reporter.report(
            ToolStarted(
                tool_call=tool_call,
                program=program,
                tool=tool,
                command=command,
                expected_memory_bytes=expected_memory_bytes,
            )
        )

    def progress(
        self, done_fraction: float | None = None, *, cpu_s: float = 0.0, memory_bytes: int = 0
    ) -> None:
        """So much of its time has passed, and so much was used; 0: not known."""
        self._reporter.report(
            ToolProgressed(
                tool_call=self.tool_call,
                program=self.program,
                cpu_s=cpu_s,
                memory_bytes=memory_bytes,
                done_fraction=done_fraction,
            )
        )

    def end(
        self,
        exit_status: int,
        *,
        wall_s: float | None = None,
        cpu_s: float = 0.0,
        peak_memory_bytes: int = 0,
    ) -> None:
        """It ended. ``wall_s``: since it started, unless it is given."""
        if self._ended:
            return
        self._ended = True
        self._reporter.report(
            ToolFinished(
                tool_call=self.tool_call,
                program=self.program,
                exit_status=exit_status,
                wall_s=time.monotonic() - self._began_s if wall_s is None else wall_s,
                cpu_s=cpu_s,
                peak_memory_bytes=peak_memory_bytes,
            )
        )


class ToolRun(Run):
    """Of a call in a sandbox; ``ended`` or ``failed`` comes last."""

    def __init__(self, reporter: Reporter, program: str, spec: ToolSpec, hint: Hint | None = None) -> None:
        super().__init__(
            reporter,
            program,
            spec.tool_call,
            spec.tool,
            command=spec.command_class,
            expected_memory_bytes=(hint.memory_bytes or 0) if hint else 0,
        )

    def progressed(self, seen: Progress) -> None:
        """Something was seen of it."""
        self.progress(seen.done_fraction, cpu_s=seen.cpu_s, memory_bytes=seen.memory_bytes)

    def ended(self, result: ToolResult) -> None:
        """It ended in one way or another."""
        used = result.usage
        self.end(
            result.exit_status, wall_s=used.wall_s, cpu_s=used.cpu_s, peak_memory_bytes=used.peak_memory_bytes
        )

    def failed(self, error: BaseException | None = None) -> None:
        """The sandbox raised: a tool that started must not seem to run for ever."""
        cancelled = error is not None and not isinstance(error, Exception)
        self.end(INTERRUPTED if cancelled else _SANDBOX_FAILED)


OnOutput = Callable[[bytes], None]


def run_reported(sandbox: Sandbox, spec: ToolSpec, on_output: OnOutput | None = None) -> ToolResult:
    """Run a call in a sandbox, and report it as one of the sandbox's program. Raises as ``Sandbox.run``."""
    run, on_progress = _begun(sandbox, spec)
    try:
        result = sandbox.run(spec, on_output, on_progress=on_progress)
    except BaseException as error:
        run.failed(error)
        raise
    return _ended(run, result)


async def arun_reported(sandbox: Sandbox, spec: ToolSpec, on_output: OnOutput | None = None) -> ToolResult:
    """The same for asyncio: cancelling it kills the call's whole tree before the cancellation goes on."""
    run, on_progress = _begun(sandbox, spec)
    try:
        result = await sandbox.arun(spec, on_output, on_progress=on_progress)
    except BaseException as error:
        run.failed(error)
        raise
    return _ended(run, result)


def _begun(sandbox: Sandbox, spec: ToolSpec) -> tuple[ToolRun, Callable[[Progress], None] | None]:
    from agentsched.cgroups.hints import hint_of

    daemon = reporter()
    environment = os.environ if spec.env is None else spec.env
    run = ToolRun(daemon, sandbox.program, spec, hint_of(spec, environment)[0])
    return run, run.progressed if daemon.url else None


def _ended(run: ToolRun, result: ToolResult) -> ToolResult:
    run.ended(result)
    say_unenforced(result.unenforced)
    return result


@functools.cache
def say_unenforced(names: tuple[str, ...]) -> None:
    """Warn, once, of what this machine cannot do to tools."""
    if names:
        _log.warning(
            "tools run without what was asked for: %s (agentsched doctor says why)", ", ".join(names)
        )
