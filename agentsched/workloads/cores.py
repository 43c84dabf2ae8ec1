"""CPU cores: which ones engine and tools get, and keeping processes on theirs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def choose_cores() -> tuple[int, int]:
    """(engine's core, core of agents and tools): two different ones where this process may use two."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def confine(pid: int, core: int, *, descendants: bool = False) -> None:
    """Move all threads of a process to ``core``, and with ``descendants`` all that it started; what
    they start later inherits it. What ends meanwhile is skipped."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        threads = [int(thread.name) for thread in tasks.iterdir()]
    except FileNotFoundError:
        return
    for thread in threads:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.sched_setaffinity(thread, {core})
            children = (tasks / str(thread) / "children").read_text().split() if descendants else []
            for child in children:
                confine(int(child), core, descendants=True)
