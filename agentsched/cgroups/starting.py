"""Starts a command that is in its leaf before its first instruction runs, and cannot get out.

A process must enter its leaf before it becomes the user's command, else its first children escape.
Code between fork and exec (``preexec_fn``) is not safe in a process with threads, and v1 has no
clone-into-cgroup. So the child is first a tiny ``sh`` that waits at a gate (a pipe) while this process moves
it into the leaf, and then executes the command in its own place; ``subprocess`` starts it with vfork,
whatever the size of this process. It does not move itself: it may be sealed already. Should moving fail, it
exits before anything of the user's has run.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agentsched.cgroups import sealing, tree
from agentsched.cgroups.contract import CommandUnusable, HostRefused, Leaf, ToolSpec
from agentsched.cgroups.outputs import Outputs

if TYPE_CHECKING:
    from agentsched.cgroups.isolation import Isolated

_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENTER = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; exec "$@"'
_STDIN_GATE = 'read -r go || exit 125; exec "$@" </dev/null'
_GATE = 'read -r go <&{fd} || exit 125; exec {fd}<&-; exec "$@"'
_HIGH_GATE = 'read -r go </dev/fd/{fd} || exit 125; exec "$@"'
"""Past 9 a shell cannot close it; what the command then has is the end of an empty pipe."""


def start(
    outputs: Outputs,
    spec: ToolSpec,
    environment: Mapping[str, str],
    leaf: Leaf,
    isolated: Isolated | None = None,
) -> subprocess.Popen[bytes]:
    """Run the command of ``outputs``, in the absolute folder of ``spec``. Raises ``CommandUnusable`` or
    ``HostRefused``; nothing runs then."""
    entries = leaf.entries()
    if not entries:
        plain = functools.partial(_popen, outputs, spec, environment, outputs.argv, None)
        return plain() if isolated is None else isolated.inside(plain)
    argv = _behind_sh(outputs.argv, environment)
    reader, writer = os.pipe()
    try:
        if spec.passthrough:
            import fcntl  # not there on every system that the SDK runs on

            low = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(reader)
            reader = low
        script = _STDIN_GATE if not spec.passthrough else (_GATE if reader < 10 else _HIGH_GATE)
        gated = ["/bin/sh", "-c", script.format(fd=reader), "agentsched", *argv]
        popen = functools.partial(_popen, outputs, spec, environment, gated, reader)
        if isolated is not None:
            process = isolated.inside(popen)
        elif spec.nesting or not sealing.possible():
            process = popen()
        else:
            process = sealing.in_sealed_thread(popen)
        _enter(process, entries)
        os.write(writer, b"go\n")
    finally:
        os.close(reader)
        os.close(writer)
    return process


def inside(argv: list[str], environment: Mapping[str, str], entries: list[str]) -> list[str]:
    """What enters a leaf by itself, by its ``entries``, and then becomes ``argv``: for agents, which are not
    sealed."""
    if not entries:
        return argv
    return ["/bin/sh", "-c", _ENTER, "agentsched", *entries, "--", *_behind_sh(argv, environment)]


def _behind_sh(argv: list[str], environment: Mapping[str, str]) -> list[str]:
    """A shell drops variables whose names it cannot hold, so env(1) sets those again."""
    odd = [f"{name}={value}" for name, value in environment.items() if not _SHELL_NAME.fullmatch(name)]
    return [*(["env", *odd] if odd else []), *argv]


def _enter(process: subprocess.Popen[bytes], entries: list[str]) -> None:
    """Move it into the leaf, or end it. One that is dead already tells so by its status."""
    try:
        for entry in entries:
            tree.write(entry, str(process.pid))
    except OSError as error:
        if error.errno == errno.ESRCH:
            return
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        raise HostRefused(f"process {process.pid} cannot enter its leaf: {error}") from error


def _popen(
    outputs: Outputs, spec: ToolSpec, environment: Mapping[str, str], argv: list[str], gate: int | None
) -> subprocess.Popen[bytes]:
    own = None if spec.passthrough else subprocess.DEVNULL
    by_stdin = gate is not None and not spec.passthrough
    try:
        return subprocess.Popen(
            argv,
            cwd=spec.cwd,
            env=environment,
            stdin=gate if by_stdin else own,
            stdout=outputs.stdout,
            stderr=outputs.stderr,
            pass_fds=outputs.pass_fds if gate is None or by_stdin else (*outputs.pass_fds, gate),
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            raise CommandUnusable(f"not executable: {argv[0]} (no program and no #! line)", 126) from error
        raise HostRefused(f"cannot start {spec.command_class}: {error.strerror}") from error
