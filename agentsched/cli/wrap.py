"""``agentsched wrap``: any agent, unmodified, with each command that it runs in a leaf of its own."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from typing import IO, Protocol

import click

from agentsched.cgroups import Hint, HostRefused, Sandbox, SandboxError, SpecRefused
from agentsched.cgroups.bpf.sensing import WANTED, open_source
from agentsched.cgroups.hints import VARIABLE
from agentsched.cgroups.wrapping.agent import PROGRAMS, Agent, Listener
from agentsched.cgroups.wrapping.shims import Shims
from agentsched.sdk.environments import arguments, environment
from agentsched.sdk.reporting import KEY_VARIABLE

_WRAPPER_FAILED = 125
_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FROM_KERNEL = 0x80  # SI_KERNEL: a terminal sends its signals to all of its foreground group
_HEALTH_TIMEOUT_S = 2.0


class _Closing(Listener, Protocol):
    def close(self) -> None: ...


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--hint", envvar=VARIABLE, show_envvar=True, help="What its commands need, as memory:high,cpu:low."
)
@click.option("--daemon", envvar="AGENTSCHED_URL", metavar="URL", show_envvar=True, help="The daemon to use.")
@click.option("--program", default="", help="The agent's name; made up without one.")
@click.option(
    "--agent-process",
    "names",
    multiple=True,
    metavar="NAME",
    help="Programs of this name that it starts are the agent itself, no commands; may be repeated.",
)
@click.option(
    "--sensing",
    type=click.Choice(WANTED),
    default="auto",
    help="How its commands are seen: by BPF where that works (auto), or by polling.",
)
@click.option(
    "--log",
    type=click.File("w"),
    help="Write a line of JSON there for each command: its words, and the tool call that it was taken for.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def wrap(
    hint: str | None,
    daemon: str | None,
    program: str,
    names: tuple[str, ...],
    sensing: str,
    log: IO[str] | None,
    command: tuple[str, ...],
) -> int:
    """Run an agent as it is: COMMAND is claude, codex, a script, anything that runs commands.

    The agent stays in a control group leaf of its own, and each command that it runs is moved into another
    one, with all that this starts. With a daemon the agent's clients are pointed to it by their environment
    (ANTHROPIC_BASE_URL, OPENAI_BASE_URL; Codex by options), and its commands are reported as the tool calls
    that the model asked for. Terminal, standard streams, signals and exit status are the agent's.

    \b
    agentsched wrap -- claude
    agentsched wrap --daemon http://127.0.0.1:8090 -- codex exec "make the tests pass"
    """
    logging.basicConfig(format="agentsched: %(message)s", stream=sys.stderr)
    argv = list(command)
    if (problem := _unusable(argv[0])) is not None:
        click.echo(f"agentsched: {problem[0]}", err=True)
        return problem[1]
    try:
        told = Hint.parse(hint) if hint else None
        name = program or f"{os.path.basename(argv[0])}-{uuid.uuid4().hex[:12]}"
        reached = daemon if daemon and _reached(daemon) else None
        if not daemon:
            click.echo(
                "agentsched: no daemon (AGENTSCHED_URL): calls and commands are not reported", err=True
            )
        if reached:
            argv = arguments(argv, reached, name)
        variables = _variables(reached, name, hint)
        with Sandbox.open(name) as sandbox:
            if sandbox.capabilities.backend == "none":
                return _plainly(argv, variables)
            return _wrapped(sandbox, argv, variables, reached, name, names, told, sensing, log)
    except SpecRefused as error:
        raise click.UsageError(str(error)) from error
    except SandboxError as error:
        click.echo(f"agentsched: {error}", err=True)
        return _WRAPPER_FAILED


def _unusable(name: str) -> tuple[str, int] | None:
    """Why a command cannot be run, and the exit status that a shell gives then."""
    if shutil.which(name) is not None:
        return None
    if os.path.dirname(name) and os.path.exists(name):
        return f"not executable: {name}", 126
    return f"command not found: {name}", 127


def _reached(daemon: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{daemon.rstrip('/')}/health", timeout=_HEALTH_TIMEOUT_S):
            return True
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        click.echo(
            f"agentsched: no daemon answers at {daemon} ({reason}): the agent runs without it", err=True
        )
        return False


def _variables(daemon: str | None, name: str, hint: str | None) -> dict[str, str]:
    variables = dict(os.environ)
    if daemon:
        variables |= environment(daemon, name, os.environ.get(KEY_VARIABLE), os.environ)
    return variables | ({VARIABLE: hint} if hint else {})


def _plainly(argv: list[str], variables: Mapping[str, str]) -> int:
    click.echo("agentsched: no cgroups here: the agent's commands are not told apart", err=True)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {*_SIGNALS, signal.SIGCHLD})
    default = (signal.SIGPIPE,)
    return _wait(os.posix_spawnp(argv[0], argv, dict(variables), setsigmask=blocked, setsigdef=default))


def _wrapped(
    sandbox: Sandbox,
    argv: list[str],
    variables: Mapping[str, str],
    daemon: str | None,
    name: str,
    names: tuple[str, ...],
    hint: Hint | None,
    sensing: str,
    log: IO[str] | None,
) -> int:
    from agentsched.sdk.wrapped import Reports, Silence

    # before there are threads, of which one might take them otherwise
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {*_SIGNALS, signal.SIGCHLD})
    source = open_source(PROGRAMS, sensing)
    listener: _Closing = Reports(daemon, name, log, hint) if daemon else Silence(log)
    agent = Agent(sandbox, source, listener, names=names, hint=hint)
    shims = Shims(agent.claimed) if source.name == "polling" else None
    if shims is not None:
        argv, variables = [shutil.which(argv[0]) or argv[0], *argv[1:]], shims.environment(variables)
    try:
        return _wait(agent.start(argv, variables, blocked))
    except OSError as error:
        raise HostRefused(f"cannot start {argv[0]}: {error.strerror}") from error
    finally:
        if shims is not None:
            shims.close()
        agent.close()
        listener.close()
        source.close()


def _wait(pid: int) -> int:
    """The agent's exit status. Signals that were sent to this process alone are passed on to it."""
    while True:
        told = signal.sigwaitinfo({*_SIGNALS, signal.SIGCHLD})
        if told.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        elif told.si_code != _FROM_KERNEL and told.si_pid != pid:
            os.kill(pid, told.si_signo)
