"""Reports one sandboxed tool call to the daemon: its start, what is seen of it while it runs, its end."""

from __future__ import annotations

import time

from agentsched.cgroups.contract import ToolResult, ToolSpec
from agentsched.cgroups.hints import Hint
from agentsched.cgroups.watching import Progress
from agentsched.core.events import ToolFinished, ToolProgressed, ToolStarted
from agentsched.sdk.reporting import Reporter


class ToolRun:
    """One call's reports. It has started when this is made; ``ended`` or ``failed`` comes last."""

    def __init__(self, reporter: Reporter, program: str, spec: ToolSpec, hint: Hint | None = None) -> None:
        self._reporter = reporter
        self._program = program
        self._call = spec.tool_call
        self._began_s = time.monotonic()
        reporter.report(
            ToolStarted(
                tool_call=spec.tool_call,
                program=program,
                tool=spec.tool,
                command=spec.command_class,
                expected_memory_bytes=(hint.memory_bytes or 0) if hint else 0,
            )
        )

    def progressed(self, seen: Progress) -> None:
        """Something was seen of it."""
        self._reporter.report(
            ToolProgressed(
                tool_call=self._call,
                program=self._program,
                cpu_s=seen.cpu_s,
                memory_bytes=seen.memory_bytes,
                done_fraction=seen.done_fraction,
            )
        )

    def ended(self, result: ToolResult) -> None:
        """It ended in one way or another."""
        used = result.usage
        self._end(result.exit_status, used.wall_s, used.cpu_s, used.peak_memory_bytes)

    def over(self, exit_status: int, wall_s: float, cpu_s: float, peak_memory_bytes: int) -> None:
        """The same, where it did not run in a sandbox of ours: in figures."""
        self._end(exit_status, wall_s, cpu_s, peak_memory_bytes)

    def failed(self) -> None:
        """The sandbox raised: a tool that started must not seem to run for ever."""
        self._end(255, time.monotonic() - self._began_s, 0.0, 0)

    def _end(self, exit_status: int, wall_s: float, cpu_s: float, peak_memory_bytes: int) -> None:
        self._reporter.report(
            ToolFinished(
                tool_call=self._call,
                program=self._program,
                exit_status=exit_status,
                wall_s=wall_s,
                cpu_s=cpu_s,
                peak_memory_bytes=peak_memory_bytes,
            )
        )
