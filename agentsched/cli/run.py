"""``agentsched run``: one command in a sandbox of its own, for shells and for any agent."""

from __future__ import annotations

import json
import os
import signal
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import click
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

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_WRAPPER_FAILED = 125


class Size(click.ParamType[int]):
    """Bytes, with K, M, G or T for powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().upper().removesuffix("B").removesuffix("I")
        number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS and text else (text, "")
        try:
            return int(float(number) * _UNITS[unit])
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a size such as 512M or 2G", param, ctx)


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


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--hint", envvar="AGENT_RESOURCE_HINT", show_envvar=True, help="As memory:high,cpu:low or time:90s."
)
@click.option("--memory", type=Size(), help="Memory limit of the whole tree, as 512M.")
@click.option("--cpu", type=float, help="CPU limit in cores, as 0.5.")
@click.option("--pids", type=int, help="Limit of processes and threads.")
@click.option("--timeout", type=float, metavar="S", help="Kill the whole tree after S seconds (status 124).")
@click.option("--program", envvar="AGENTSCHED_PROGRAM", default="", show_envvar=True, help="Whose tool call.")
@click.option(
    "--tool-call", envvar="AGENTSCHED_TOOL_CALL", default="", show_envvar=True, help="Id of the tool call."
)
@click.option("--priority", type=click.IntRange(0, 9), help="Against others where memory is short.")
@click.option("--nesting", is_flag=True, help="COMMAND may make control groups and mounts of its own.")
@click.option("--isolate", is_flag=True, help="COMMAND's writes are kept apart, bounded, and thrown away.")
@click.option("--disk", type=Size(), metavar="SIZE", help="With --isolate: how much it may write [1G].")
@click.option(
    "--writable",
    multiple=True,
    metavar="DIR",
    help="With --isolate: changed for real. May be repeated.",
)
@click.option("--no-network", is_flag=True, help="With --isolate: it has no network.")
@click.option("--daemon", envvar="AGENTSCHED_URL", metavar="URL", show_envvar=True, help="Report to it.")
@click.option("--usage", is_flag=True, help="One line on stderr about what was used.")
@click.option(
    "--json", "json_file", type=click.File("w", lazy=False), help="Write the result there (- is stdout)."
)
@click.option(
    "--feedback",
    envvar="AGENTSCHED_FEEDBACK",
    type=click.File("w", lazy=False),
    show_envvar=True,
    help="Write there, as JSON, what the call used, why it was slowed or ended, and what to try.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    hint: str | None,
    memory: int | None,
    cpu: float | None,
    pids: int | None,
    timeout: float | None,
    program: str,
    tool_call: str,
    priority: int | None,
    nesting: bool,
    daemon: str | None,
    usage: bool,
    json_file: IO[str] | None,
    feedback: IO[str] | None,
    command: tuple[str, ...],
    **isolated: Any,
) -> int:
    """Run COMMAND in a control group of its own, with this process's stdin, stdout and stderr.

    The exit status is the command's (128 + number if a signal killed it), 124 if it timed out, 125 if
    the sandbox failed, 126 or 127 if the command cannot be executed or found. When the command ends,
    or this process is killed, everything that the command started is killed too.
    """
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
        result = _run(spec, program, priority, daemon, _isolation(**isolated))
    except CommandUnusable as error:
        click.echo(f"agentsched: {error}", err=True)
        return error.exit_status
    except SpecRefused as error:
        raise click.UsageError(str(error)) from error
    except HostRefused as error:
        click.echo(f"agentsched: the sandbox failed: {error}", err=True)
        return _WRAPPER_FAILED
    _tell(result, usage, json_file, hint)
    if feedback is not None:
        feedback.write(json.dumps(to_builtins(result.feedback)) + "\n")
    return result.exit_status


def _isolation(
    *, isolate: bool, disk: int | None, writable: tuple[str, ...], no_network: bool
) -> Isolation | None:
    if not isolate:
        if disk is not None or writable or no_network:
            raise click.UsageError("--disk, --writable and --no-network go with --isolate")
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


def _tell(result: ToolResult, usage: bool, json_file: IO[str] | None, hint: str | None) -> None:
    used = result.usage
    if result.unenforced:
        click.echo(f"agentsched: not enforced on this machine: {', '.join(result.unenforced)}", err=True)
    if result.feedback.note:
        click.echo(f"agentsched: {result.feedback.note}", err=True)
    if usage:
        click.echo(
            f"agentsched: {used.wall_s:.2f} s, {used.cpu_s:.2f} s of CPU, "
            f"{used.peak_memory_bytes / 2**20:.0f} MiB at most, {result.reason}",
            err=True,
        )
    if json_file is not None:
        record = {
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
        json_file.write(json.dumps(record) + "\n")
