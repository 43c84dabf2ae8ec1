"""CPU cores: which ones engine and tools get, and keeping processes on theirs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def choose_cores() -> tuple[int, int]:
    """(engine's core, core of agents and tools): two different ones where this process may use two."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


@contextlib.contextmanager
def confined_to(core: int) -> Iterator[None]:
    """Processes that this thread starts inside the block stay on ``core``, with all they start."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def confine_tree(pid: int, core: int) -> None:
    """Move a process, its threads and its descendants to ``core``; later children inherit it.

    What ends meanwhile is skipped.
    """
    tasks = Path(f"/proc/{pid}/task")
    try:
        threads = [int(thread.name) for thread in tasks.iterdir()]
    except FileNotFoundError:
        return
    for thread in threads:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.sched_setaffinity(thread, {core})
            for child in (tasks / str(thread) / "children").read_text().split():
                confine_tree(int(child), core)
