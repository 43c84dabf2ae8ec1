"""Children that the kernel ends when the process that started them dies, from their first moment on.

``prctl(PR_SET_PDEATHSIG)`` must be called by the child itself, and a process with threads cannot run
code of its own between fork and exec. So util-linux's setpriv makes the tie and then executes the
command in its own place. A parent that died before the tie was made would never be noticed: behind
it a shell looks whether the parent is still the same, and executes nothing if it is not.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence

_EXEC_IF_PARENT_LIVES = 'test "$PPID" = "$0" && exec "$@"'


def tied(command: Sequence[str], number: signal.Signals) -> list[str]:
    """``command`` so that its process gets ``number`` when the thread that starts it ends.

    Start it from this process, from a thread that lives as long as the child may. Without setpriv
    the command is returned as it is.
    """
    if not (setpriv := _setpriv()):
        return list(command)
    name = number.name.removeprefix("SIG")
    parent = str(os.getpid())
    return [setpriv, "--pdeathsig", name, "--", "/bin/sh", "-c", _EXEC_IF_PARENT_LIVES, parent, *command]


@functools.cache
def _setpriv() -> str | None:
    """util-linux's setpriv; that of busybox cannot make the tie."""
    if not (found := shutil.which("setpriv")):
        return None
    try:
        done = subprocess.run([found, "--pdeathsig", "TERM", "--", "true"], capture_output=True)
    except OSError:
        return None
    return found if done.returncode == 0 else None
