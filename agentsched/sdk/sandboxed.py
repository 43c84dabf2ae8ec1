"""Commands as tools: each in a control group of its own, reported as a tool call of the running program.

>>> from agentsched.sdk import program, run_command
>>> with program("greeter"):
...     run_command("echo hello", memory="256M", timeout_s=10).text
'hello\\n'
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from agentsched.cgroups import Hint, Limits, Sandbox, SpecRefused, ToolResult, ToolSpec
from agentsched.sdk.programs import Program, current_program, next_tool_call
from agentsched.sdk.tool_runs import OnOutput, arun_reported, run_reported, say_unenforced


def limits(memory: int | str | None, cpu: float | None) -> Limits:
    """``memory`` in bytes, or as ``512M``; ``cpu`` in cores. Raises ``SpecRefused`` (a ValueError)."""
    if not isinstance(memory, str):
        return Limits(memory_bytes=memory, cpu_cores=cpu)
    try:
        amount = Hint.parse(f"memory:{memory}").memory_bytes
    except SpecRefused:
        amount = None
    if amount is None:
        raise SpecRefused(f"memory must be bytes, or text as '512M' or '2G', got {memory!r}")
    return Limits(memory_bytes=amount, cpu_cores=cpu)


def run_command(
    command: str | Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    tool: str = "bash",
    memory: int | str | None = None,
    cpu: float | None = None,
    timeout_s: float | None = None,
    hint: str = "",
) -> ToolResult:
    """Run a shell command (text) or a program (a sequence of words), and say how it ended.

    A command that fails, runs into its time or into its memory limit raises nothing: ``exit_status``,
    ``text`` and ``feedback.note`` of the result tell. ``env``: beside this process's own variables. Raises
    ``SpecRefused`` for what cannot be run, ``HostRefused`` where the machine does not let it. Where the
    machine has no control groups for us it runs as a plain process, which is said once.
    """
    spec = _spec(command, cwd, env, tool, limits(memory, cpu), timeout_s, hint)
    running = current_program()
    if running is not None and running.sandbox is not None:
        return run_reported(running.sandbox, _named(spec, running))
    return run_spec(spec)


async def arun_command(
    command: str | Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    tool: str = "bash",
    memory: int | str | None = None,
    cpu: float | None = None,
    timeout_s: float | None = None,
    hint: str = "",
) -> ToolResult:
    """The same for asyncio. Cancelling it kills the command with all that it started."""
    spec = _spec(command, cwd, env, tool, limits(memory, cpu), timeout_s, hint)
    running = current_program()
    if running is not None and running.sandbox is not None:
        return await arun_reported(running.sandbox, _named(spec, running))
    return await arun_spec(spec)


def _spec(
    command: str | Sequence[str],
    cwd: str | None,
    env: Mapping[str, str] | None,
    tool: str,
    limits: Limits,
    timeout_s: float | None,
    hint: str,
) -> ToolSpec:
    return ToolSpec(
        command=command if isinstance(command, str) else "",
        argv=() if isinstance(command, str) else command,
        cwd=cwd,
        env=None if env is None else os.environ | dict(env),
        tool=tool,
        limits=limits,
        timeout_s=timeout_s,
        hint=Hint.parse(hint) if hint else None,
    )


def run_spec(spec: ToolSpec, on_output: OnOutput | None = None) -> ToolResult:
    """Run a call in a leaf, as a tool call of the running program; outside a program it is not reported."""
    running = current_program()
    with Sandbox.open(running.id if running else "") as sandbox:
        if running is None:
            return _told(sandbox.run(spec, on_output))
        return run_reported(sandbox, _named(spec, running), on_output)


async def arun_spec(spec: ToolSpec, on_output: OnOutput | None = None) -> ToolResult:
    """The same for asyncio."""
    running = current_program()
    with Sandbox.open(running.id if running else "") as sandbox:
        if running is None:
            return _told(await sandbox.arun(spec, on_output))
        return await arun_reported(sandbox, _named(spec, running), on_output)


def _named(spec: ToolSpec, running: Program) -> ToolSpec:
    environment = os.environ if spec.env is None else spec.env
    return msgspec.structs.replace(
        spec,
        tool_call=next_tool_call(running),
        # what runs inside, as `agentsched run`, says whose it is
        env={**environment, "AGENTSCHED_PROGRAM": running.id},
    )


def _told(result: ToolResult) -> ToolResult:
    say_unenforced(result.unenforced)
    return result
