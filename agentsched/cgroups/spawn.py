"""Runs one tool call in a leaf: in it before the command is executed (``starting``), and nothing left
after it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agentsched.cgroups.contract import (
    MOST_PIDS,
    Cancelled,
    Capabilities,
    CommandUnusable,
    DiskUse,
    Ending,
    HostRefused,
    Leaf,
    SpecRefused,
    ToolResult,
    ToolSpec,
    Unsupported,
)
from agentsched.cgroups.controlled import Verdict
from agentsched.cgroups.feedback import Seen, feedback
from agentsched.cgroups.hints import Hint, hint_of
from agentsched.cgroups.outputs import OnOutput, Outputs
from agentsched.cgroups.pump import Cancel, Capture, Outcome, Pump
from agentsched.cgroups.starting import start

if TYPE_CHECKING:
    import asyncio

    from agentsched.cgroups.sandbox import Sandbox
    from agentsched.cgroups.watching import OnProgress, Watch

OnStart = Callable[[Leaf, int], None]

TIMED_OUT_STATUS = 124
_DEATH_S = 10.0


def run_tool_sync(
    sandbox: Sandbox,
    spec: ToolSpec,
    on_output: OnOutput | None = None,
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> ToolResult:
    """Run a tool call to its end and return what came of it.

    Ends when the main process ends; whatever that left behind in the leaf is killed then. On any
    exception, KeyboardInterrupt included, the leaf is killed and removed too. ``on_output`` gets
    chunks as they come, ``on_start`` the leaf and the main process's id, ``on_progress`` what is seen of the
    running call, about once a second; all run in this thread. With ``on_progress``, output that is passed
    through, unless to a terminal, is looked at on its way.
    Raises ``SpecRefused`` before anything was started, ``HostRefused``, and ``Cancelled`` if the
    sandbox is closed meanwhile.
    """
    environment = dict(os.environ if spec.env is None else spec.env)
    hint, hint_problem = hint_of(spec, environment)
    spec, argv = _resolved(sandbox, spec, environment)
    watch = _watch(sandbox, spec, on_progress)
    with sandbox.leaf(spec.tool_call) as (tool_call, leaf):
        unenforced = _configure(leaf, spec, hint, sandbox.capabilities)
        sandbox.controlled.began(leaf, sandbox.program, sandbox.standing, spec, hint)
        if watch is not None:
            environment = watch.environment | environment
        environment.update(leaf.marks())
        outputs = Outputs(spec, argv, watch, on_output)
        try:
            process = start(outputs, spec, environment, leaf, sandbox.isolated)
            pump = Pump(process, outputs.capture, cancel)
            try:
                outputs.start()
                if watch is not None:
                    watch.begin(leaf)
                leaf.started(process.pid)
                if on_start is not None:
                    on_start(leaf, process.pid)
                outcome = pump.wait(spec.timeout_s, ticking=watch)
            finally:
                _end(leaf, process, pump)
        finally:
            outputs.finish()
        run = _Run(tool_call, leaf, pump, outputs.capture, outcome, watch, hint, hint_problem)
        _check(sandbox, run)
        return _result(sandbox, spec, run, unenforced)


def _watch(sandbox: Sandbox, spec: ToolSpec, on_progress: OnProgress | None) -> Watch | None:
    """Nobody looks at output that is only passed through; what looking needs is imported here."""
    if spec.passthrough and on_progress is None:
        return None
    from agentsched.cgroups.watching import Watch

    return Watch(spec, sandbox.counts.of(spec), on_progress)


class _Run(NamedTuple):
    """A run that has ended, its leaf still there."""

    tool_call: str
    leaf: Leaf
    pump: Pump
    capture: Capture
    outcome: Outcome
    watch: Watch | None
    hint: Hint | None
    hint_problem: str


def _check(sandbox: Sandbox, run: _Run) -> None:
    """Raise if the end is no result of the command's own."""
    if run.outcome is Outcome.CANCELLED:
        raise Cancelled(f"{run.tool_call} was cancelled")
    if sandbox.closed:
        raise Cancelled(f"{run.tool_call} ended with its sandbox, which was closed")


def _result(sandbox: Sandbox, spec: ToolSpec, run: _Run, unenforced: tuple[str, ...]) -> ToolResult:
    timed_out = run.outcome is Outcome.TIMED_OUT
    oom_kills = run.leaf.oom_kills()
    used = run.leaf.usage()
    ending = _ending(run, oom_kills)
    status = TIMED_OUT_STATUS if timed_out else run.pump.ended.exit_status
    told = run.watch.last() if run.watch is not None else None
    verdict = sandbox.controlled.ended(
        run.leaf,
        used.peak_memory_bytes,
        by_itself=ending is Ending.EXITED,
        killed=ending in (Ending.KILLED, Ending.MEMORY_LIMIT),
    )
    if ending is Ending.EXITED and run.watch is not None:
        sandbox.counts.learn(spec, run.watch.counted())
    seen = Seen(
        ending=ending,
        exit_status=status,
        usage=used,
        pressure=run.leaf.pressure() if sandbox.capabilities.pressure else None,
        disk=_disk(sandbox, run.capture),
        done_fraction=told.done_fraction if told else None,
        progress_source=told.source if told else "",
        hint=run.hint,
        hint_problem=run.hint_problem,
        verdict=verdict,
    )
    return ToolResult(
        program=sandbox.program,
        tool_call=run.tool_call,
        exit_status=status,
        output=run.capture.result(),
        dropped_output_bytes=run.capture.dropped,
        usage=used,
        timed_out=timed_out,
        oom_killed=oom_kills > 0,
        reason=_reason(spec, run.pump, timed_out, oom_kills, verdict),
        backend=sandbox.capabilities.backend,
        feedback=feedback(spec, seen),
        unenforced=unenforced,
    )


def _disk(sandbox: Sandbox, capture: Capture) -> DiskUse | None:
    """It was full if it is, or if the command says so: what did not fit may have been removed by now."""
    if sandbox.isolated is None:
        return None
    use = sandbox.isolated.disk()
    told = os.strerror(errno.ENOSPC).encode() in capture.result()
    return msgspec.structs.replace(use, full=use.full or told)


def _ending(run: _Run, oom_kills: int) -> Ending:
    if run.outcome is Outcome.TIMED_OUT:
        return Ending.TIME_LIMIT
    if oom_kills:
        return Ending.MEMORY_LIMIT
    return Ending.KILLED if run.pump.ended.signal_number == signal.SIGKILL else Ending.EXITED


async def run_tool(
    sandbox: Sandbox,
    spec: ToolSpec,
    on_output: OnOutput | None = None,
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
) -> ToolResult:
    """The same for asyncio: in a thread of its own, the callbacks in the event loop. Cancelling it
    kills and removes the leaf before the cancellation goes on."""
    import asyncio

    loop = asyncio.get_running_loop()
    done: asyncio.Future[ToolResult] = loop.create_future()
    cancel = Cancel()

    def settle(result: ToolResult | None, error: BaseException | None) -> None:
        cancel.close()
        if result is not None:
            done.set_result(result)
        elif error is not None:
            done.set_exception(error)

    callbacks = _in_loop(loop, on_output), _in_loop(loop, on_start), _in_loop(loop, on_progress)

    def work() -> None:
        try:
            result = run_tool_sync(sandbox, spec, *callbacks, cancel)
        except BaseException as error:  # it is raised again where it is awaited
            _post(loop.call_soon_threadsafe, settle, None, error)
        else:
            _post(loop.call_soon_threadsafe, settle, result, None)

    threading.Thread(target=work, name=f"tool {spec.tool_call}", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        if done.done():
            raise
        cancel.set()
        while not done.done():
            try:
                await asyncio.wait({done})
            except asyncio.CancelledError:
                continue  # cancelled once more: the leaf must be gone first all the same
        done.exception()
        raise


def _in_loop(
    loop: asyncio.AbstractEventLoop, callback: Callable[..., None] | None
) -> Callable[..., None] | None:
    return None if callback is None else lambda *values: _post(loop.call_soon_threadsafe, callback, *values)


def _post(call_soon: Callable[..., object], callback: Callable[..., None], *values: object) -> None:
    try:
        call_soon(callback, *values)
    except RuntimeError:
        return  # the loop was closed without waiting for its tasks: nobody is left to tell


def _resolved(sandbox: Sandbox, spec: ToolSpec, environment: Mapping[str, str]) -> tuple[ToolSpec, list[str]]:
    """The call in its absolute folder, for other threads may be elsewhere, and its argument vector as
    ``_resolve`` has it, of the files that the command will see."""
    try:
        spec = msgspec.structs.replace(spec, cwd=os.path.abspath(spec.cwd or ""))
    except FileNotFoundError as error:
        raise SpecRefused("cwd: the current folder was removed") from error
    if sandbox.isolated is None:
        return spec, _resolve(spec, environment)
    if spec.nesting:
        raise SpecRefused("nesting: an isolated tool call can have no sandboxes of its own")
    return spec, sandbox.isolated.inside(lambda: _resolve(spec, environment))


def _resolve(spec: ToolSpec, environment: Mapping[str, str]) -> list[str]:
    """The argument vector, checked: what cannot be executed is found before a leaf is made."""
    if spec.cwd is not None and not os.path.isdir(spec.cwd):
        raise SpecRefused(f"cwd: {spec.cwd!r} is not a folder")
    argv = list(spec.argv) if spec.argv else [spec.shell, "-c", spec.command]
    name = argv[0]
    if os.path.dirname(name):
        found = os.path.join(spec.cwd or "", name)
        if not os.path.exists(found):
            raise CommandUnusable(f"command not found: {name}", 127)
        if os.path.isdir(found) or not os.access(found, os.X_OK):
            raise CommandUnusable(f"not executable: {name}", 126)
        return argv
    import shutil

    if shutil.which(name, path=environment.get("PATH", os.defpath)) is None:
        raise CommandUnusable(f"command not found: {name} (looked in PATH)", 127)
    return argv


def _configure(leaf: Leaf, spec: ToolSpec, hint: Hint | None, can: Capabilities) -> tuple[str, ...]:
    """Set limits and weight; returns what was asked for in vain."""
    asked: list[tuple[str, object, Callable[[], None]]] = [
        ("memory limit", spec.limits.memory_bytes, lambda: leaf.limit_memory(spec.limits.memory_bytes)),
        ("CPU limit", spec.limits.cpu_cores, lambda: leaf.limit_cpu(spec.limits.cpu_cores)),
        ("limit of processes", spec.limits.pids, lambda: leaf.limit_pids(spec.limits.pids)),
    ]
    weight = hint.cpu_weight if hint else None
    if weight is not None:
        asked.append(("CPU weight", weight, lambda: leaf.weigh_cpu(weight)))
    if spec.limits.pids is None and can.pids_limit:
        leaf.limit_pids(MOST_PIDS)
    unenforced = []
    for name, value, setter in asked:
        if value is None:
            continue
        try:
            setter()
        except Unsupported:
            unenforced.append(name)
    return tuple(unenforced)


def _end(leaf: Leaf, process: subprocess.Popen[bytes], pump: Pump) -> None:
    """Leave nothing alive in the leaf, the main process reaped, and no descriptor open."""
    try:
        leaf.kill()
        for _ in range(int(_DEATH_S / 0.05)):
            if pump.wait(0.0, heed_cancel=False) is Outcome.EXITED:
                break
            # again, for it may have been just about to enter; and by pid, if it never will
            process.kill()
            leaf.kill()
            pump.wait(0.05, heed_cancel=False)
        else:
            raise HostRefused(f"process {process.pid} does not die (waiting for a device?)")
        leaf.ended(pump.ended.cpu_s, pump.ended.peak_memory_bytes)
        pump.drain()
    finally:
        pump.close()


def _reason(spec: ToolSpec, pump: Pump, timed_out: bool, oom_kills: int, verdict: Verdict) -> str:
    ended = pump.ended
    if timed_out:
        return f"timed out after {spec.timeout_s:g} s"
    words = f"exited with {ended.exit_status}"
    if ended.signal_number:
        words = f"killed by {signal.Signals(ended.signal_number).name}"
    if verdict.why:
        words += "; it was ended for the memory that it held"
    if oom_kills:
        limit = f" of {spec.limits.memory_bytes} bytes" if spec.limits.memory_bytes else ""
        words += f"; the kernel killed {oom_kills} of its processes at the memory limit{limit}"
    return words
