"""``agentsched mcp-run``: a server of the Model Context Protocol in a sandbox, its calls reported."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import click

from agentsched.cgroups import CommandUnusable, HostRefused, Leaf, Limits, Sandbox, SpecRefused, ToolSpec
from agentsched.cli.run import Size
from agentsched.cli.run_call import Forwarder
from agentsched.sdk.mcp_calls import Call, Calls
from agentsched.sdk.reporting import KEY_VARIABLE, Reporter
from agentsched.sdk.tool_runs import Run, say_unenforced

_CHUNK = 1 << 16
_LONGEST_LINE = 64 << 20
_DRAIN_S = 5.0
_WRAPPER_FAILED = 125


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--memory", type=Size(), help="Memory limit of the server with all that it starts, as 512M.")
@click.option("--cpu", type=float, help="CPU limit in cores, as 0.5.")
@click.option("--pids", type=int, help="Limit of processes and threads.")
@click.option(
    "--program", envvar="AGENTSCHED_PROGRAM", default="", show_envvar=True, help="Whose tool calls they are."
)
@click.option("--daemon", envvar="AGENTSCHED_URL", metavar="URL", show_envvar=True, help="Report to it.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def mcp_run(
    memory: int | None,
    cpu: float | None,
    pids: int | None,
    program: str,
    daemon: str | None,
    command: tuple[str, ...],
) -> int:
    """Run the MCP server COMMAND, which speaks on stdin and stdout, in a control group of its own.

    Put it before the server's command where a client is told of it, as in `"command": "agentsched",
    "args": ["mcp-run", "--memory", "2G", "--", "my-server"]`. Each tools/call is reported to the daemon as a
    tool call that begins and ends. Whose it is, the client says by `agentsched/program` in the call's _meta,
    or by the id of the model's tool call (Claude Code does so by itself), or --program says it for all; a
    call of nobody's is not reported. What client and server say to each other passes unchanged.

    The exit status is the server's, 125 if the sandbox failed, 126 or 127 if the command cannot be executed
    or found. When the server ends, or this process is killed, everything that it started is killed too.
    """
    try:
        spec = ToolSpec(
            argv=command,
            tool="mcp-server",
            tool_call=f"mcp-run-{os.getpid()}",
            limits=Limits(memory_bytes=memory, cpu_cores=cpu, pids=pids),
            passthrough=True,
        )
        return _serve(spec, program, daemon)
    except CommandUnusable as error:
        click.echo(f"agentsched: {error}", err=True)
        return error.exit_status
    except SpecRefused as error:
        raise click.UsageError(str(error)) from error
    except HostRefused as error:
        click.echo(f"agentsched: the sandbox failed: {error}", err=True)
        return _WRAPPER_FAILED


def _serve(spec: ToolSpec, program: str, daemon: str | None) -> int:
    forwarder = Forwarder()
    forwarder.install()
    between = Between(Reports(daemon, program, spec.command_class)) if daemon else None
    with Sandbox.open(program) as sandbox:

        def started(leaf: Leaf, pid: int) -> None:
            forwarder.started(leaf, pid)
            if between is not None:
                between.start(leaf)

        result = sandbox.run(spec, on_start=started)
    if between is not None:
        between.finish()
    say_unenforced(result.unenforced)
    if result.feedback.note:
        click.echo(f"agentsched: {result.feedback.note}", err=True)
    return result.exit_status


class Reports:
    """Of the server's calls to a daemon. Thread-safe. ``leaf``: where the server runs, once it does."""

    def __init__(self, daemon: str, program: str, server: str) -> None:
        self._reporter = Reporter(daemon, os.environ.get(KEY_VARIABLE))
        self._server = server
        self._lock = threading.Lock()
        self._calls = Calls(self._begin, program, f"{server}-{os.getpid()}")
        self._begun = 0
        self._silent = False
        self.leaf: Leaf | None = None

    def sent(self, line: bytes) -> None:
        """A line from the client, before the server has it."""
        with self._lock:
            if b"tools/call" in line or b"notifications/cancelled" in line:
                self._calls.sent(line)

    def answered(self, line: bytes) -> None:
        """A line from the server."""
        with self._lock:
            if self._calls.running:
                self._calls.answered(line)

    def end(self) -> None:
        """The server is gone; waits a little until all is sent."""
        with self._lock:
            self._calls.end()
        self._reporter.flush()

    def _begin(self, call: Call) -> Measured | None:
        if not call.program and not call.said:
            if not self._silent:
                self._silent = True
                click.echo(
                    "agentsched: calls of this MCP server are not reported: nobody says whose they are "
                    "(--program, AGENTSCHED_PROGRAM, or agentsched.sdk.mcp.call_meta in the client)",
                    err=True,
                )
            return None
        self._begun += 1
        run = Run(
            self._reporter,
            # of an id that the daemon gave out it knows better whose it is
            call.program or f"mcp-{self._server}-{os.getpid()}",
            call.tool_call,
            call.tool,
            command=self._server,
            expected_memory_bytes=call.expected_memory_bytes,
        )
        return Measured(run, self._cpu_s, self._alone())

    def _cpu_s(self) -> float:
        return self.leaf.usage().cpu_s if self.leaf is not None else 0.0

    def _alone(self) -> Callable[[], bool]:
        number, before = self._begun, self._calls.running
        return lambda: not before and self._begun == number


class Measured:
    """A call with the CPU time that the server took for it, where no other one ran beside it."""

    def __init__(self, run: Run, cpu_s: Callable[[], float], alone: Callable[[], bool]) -> None:
        self._run = run
        self._cpu_s = cpu_s
        self._alone = alone
        self._before_s = cpu_s()

    def progress(self, done_fraction: float | None) -> None:
        """The server told how far it is."""
        self._run.progress(done_fraction)

    def end(self, exit_status: int) -> None:
        """It was answered, or will not be."""
        used_s = max(0.0, self._cpu_s() - self._before_s)
        self._run.end(exit_status, cpu_s=used_s if self._alone() else 0.0)


class Between:
    """Stands between client and server: what was this process's stdin and stdout is the client's side from
    now on, and the server, which inherits what is there then, has pipes."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._from_client, self._to_client = os.dup(0), os.dup(1)
        at_server, self._to_server = os.pipe()
        self._from_server, from_server = os.pipe()
        for mine, place in ((at_server, 0), (from_server, 1)):
            os.dup2(mine, place)
            os.close(mine)
        self._answers = threading.Thread(target=self._pass_answers, name="mcp-answers", daemon=True)

    def start(self, leaf: Leaf) -> None:
        """The server runs, and has its ends of the pipes."""
        self._reports.leaf = leaf
        nothing = os.open(os.devnull, os.O_RDWR)
        for place in (0, 1):
            os.dup2(nothing, place)
        os.close(nothing)
        self._answers.start()
        # nothing ends this one but its client: it is left behind when the server has ended
        threading.Thread(target=self._pass_requests, name="mcp-requests", daemon=True).start()

    def finish(self) -> None:
        """The server has ended. What a process that got away still holds open is not waited for."""
        self._answers.join(_DRAIN_S)
        self._reports.end()

    def _pass_requests(self) -> None:
        pass_on(self._from_client, self._to_server, self._reports.sent, before=True)

    def _pass_answers(self) -> None:
        pass_on(self._from_server, self._to_client, self._reports.answered, before=False)


def pass_on(source: int, target: int, look: Callable[[bytes], None], *, before: bool) -> None:
    """Copy until the source ends or nobody takes it any more, then close both. ``look`` gets each whole line,
    ``before`` it is passed on or after."""
    lines = Lines(look)
    try:
        while chunk := os.read(source, _CHUNK):
            if before:
                lines.feed(chunk)
            left = memoryview(chunk)
            while left:
                left = left[os.write(target, left) :]
            if not before:
                lines.feed(chunk)
    except BrokenPipeError:
        return  # the other side learns it by the closed end
    finally:
        os.close(source)
        os.close(target)


class Lines:
    """Cuts a stream into lines; what is longer than 64 MiB is left out."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        first, *rest = chunk.split(b"\n")
        self._add(first)
        for part in rest:
            if self._size <= _LONGEST_LINE:
                self._take(b"".join(self._parts))
            self._parts, self._size = [], 0
            self._add(part)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= _LONGEST_LINE:
            self._parts.append(part)
