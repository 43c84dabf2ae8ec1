"""What ``agentsched run`` does, once its words are read: one command in a sandbox of its own.

What is imported here delays every command: no click, and the rest when it is needed.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from msgspec import structs, to_builtins

from agentsched.cgroups import (
    CommandUnusable,
    Hint,
    HostRefused,
    Isolation,
    Leaf,
    Limits,
    Sandbox,
    SpecRefused,
    ToolResult,
    ToolSpec,
)

if TYPE_CHECKING:
    from agentsched.cgroups import Progress
    from agentsched.sdk.reporting import Reporter
    from agentsched.sdk.tool_runs import ToolRun

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_WRAPPER_FAILED = 125


class Forwarder:
    """Passes signals on to the command; the second one of them kills its whole tree."""

    def __init__(self) -> None:
        self._leaf: Leaf | None = None
        self._group = 0
        self._seen = False

    def started(self, leaf: Leaf, pid: int) -> None:
        """The command runs; its process group has the same number."""
        self._leaf, self._group = leaf, pid

    def install(self) -> None:
        """Take the signals over for the rest of this process's life."""
        for name in _FORWARDED:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._leaf is None:
            raise SystemExit(128 + number)
        if self._seen:
            self._leaf.kill()
            return
        self._seen = True
        try:
            os.killpg(self._group, number)
        except ProcessLookupError:
            return  # it has just ended by itself


def run_call(
    *,
    hint: str | None,
    memory: int | None,
    cpu: float | None,
    pids: int | None,
    timeout: float | None,
    program: str | None,
    tool_call: str | None,
    priority: int | None,
    nesting: bool,
    daemon: str | None,
    usage: bool,
    json: IO[str] | None,
    feedback: IO[str] | None,
    command: tuple[str, ...],
    **isolated: Any,
) -> int:
    """The exit status. Raises ``SpecRefused`` for what cannot be asked for; nothing has run then."""
    try:
        spec = ToolSpec(
            argv=command,
            tool_call=tool_call or f"run-{os.getpid()}",
            hint=Hint.parse(hint) if hint else None,
            timeout_s=timeout,
            limits=Limits(memory_bytes=memory, cpu_cores=cpu, pids=pids),
            passthrough=True,
            nesting=nesting,
        )
        result = _run(spec, program or "", priority, daemon, _isolation(**isolated))
    except CommandUnusable as error:
        _say(f"agentsched: {error}")
        return error.exit_status
    except HostRefused as error:
        _say(f"agentsched: the sandbox failed: {error}")
        return _WRAPPER_FAILED
    _tell(result, usage)
    if json is not None:
        _write(json, _record(result, hint))
    if feedback is not None:
        _write(feedback, to_builtins(result.feedback))
    return result.exit_status


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _write(file: IO[str], record: object) -> None:
    from json import dumps

    file.write(dumps(record) + "\n")
    file.flush()


def _isolation(
    *, isolate: bool, disk: int | None, writable: tuple[str, ...], no_network: bool
) -> Isolation | None:
    if not isolate:
        if disk is not None or writable or no_network:
            raise SpecRefused("--disk, --writable and --no-network go with --isolate")
        return None
    asked = Isolation(writable=writable, network=not no_network)
    return asked if disk is None else structs.replace(asked, disk_bytes=disk)


def _run(
    spec: ToolSpec, program: str, priority: int | None, daemon: str | None, isolation: Isolation | None
) -> ToolResult:
    forwarder = Forwarder()
    forwarder.install()
    reports: Reports | None = None
    with Sandbox.open(program, priority=priority, isolation=isolation) as sandbox:
        if daemon:
            reports = Reports(daemon, sandbox.program, spec)

        def started(leaf: Leaf, pid: int) -> None:
            forwarder.started(leaf, pid)
            if reports is not None:
                reports.start()

        result = sandbox.run(
            spec, on_start=started, on_progress=reports.progressed if reports is not None else None
        )
    if reports is not None:
        reports.end(result)
    return result


class Reports:
    """Reports the call to a daemon. What that needs is imported once the command runs."""

    def __init__(self, daemon: str, program: str, spec: ToolSpec) -> None:
        self._daemon, self._program, self._spec = daemon, program, spec
        self._made: tuple[Reporter, ToolRun] | None = None

    def start(self) -> None:
        """The command runs."""
        from agentsched.cgroups.hints import hint_of
        from agentsched.sdk.reporting import KEY_VARIABLE, Reporter
        from agentsched.sdk.tool_runs import ToolRun

        reporter = Reporter(self._daemon, os.environ.get(KEY_VARIABLE))
        hint, _ = hint_of(self._spec, os.environ)
        self._made = reporter, ToolRun(reporter, self._program, self._spec, hint)

    def progressed(self, seen: Progress) -> None:
        """Something was seen of it."""
        if self._made is not None:
            self._made[1].progressed(seen)

    def end(self, result: ToolResult) -> None:
        """It ended; waits a little until that is sent."""
        if self._made is not None:
            reporter, run = self._made
            run.ended(result)
            reporter.flush()


def _tell(result: ToolResult, usage: bool) -> None:
    used = result.usage
    if result.unenforced:
        _say(f"agentsched: not enforced on this machine: {', '.join(result.unenforced)}")
    if result.feedback.note:
        _say(f"agentsched: {result.feedback.note}")
    if usage:
        _say(
            f"agentsched: {used.wall_s:.2f} s, {used.cpu_s:.2f} s of CPU, "
            f"{used.peak_memory_bytes / 2**20:.0f} MiB at most, {result.reason}"
        )


def _record(result: ToolResult, hint: str | None) -> dict[str, object]:
    used = result.usage
    return {
        "program": result.program,
        "tool_call": result.tool_call,
        "exit_status": result.exit_status,
        "wall_s": used.wall_s,
        "cpu_s": used.cpu_s,
        "peak_memory_bytes": used.peak_memory_bytes,
        "timed_out": result.timed_out,
        "oom_killed": result.oom_killed,
        "reason": result.reason,
        "backend": result.backend,
        "unenforced": list(result.unenforced),
        "feedback": result.feedback.note,
        "hint": hint,
    }
