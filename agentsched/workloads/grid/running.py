"""Running cells over processes, and the files that make it go on where it stopped.

Each finished cell is one line of a file; a cell that has a line there is not run again. What the file does
not know is the version of the code: after a change, start with an empty file.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

import msgspec

from agentsched.workloads.grid.cells import Case, Cell, Done, Load, measure_load, run_cell

Result = TypeVar("Result")

_encode = msgspec.json.encode
_done = msgspec.json.Decoder(Done)
_loads = msgspec.json.Decoder(list[Load])


def read_done(path: Path) -> dict[Cell, Done]:
    """The cells that the file has; a last line that was cut off is left out."""
    if not path.is_file():
        return {}
    lines = path.read_bytes().splitlines(keepends=True)
    done = (_done.decode(line) for line in lines if line.endswith(b"\n"))
    return {each.cell: each for each in done}


def run_cells(
    cells: Sequence[Cell], loads: Sequence[Load], path: Path, jobs: int, told: Callable[[int, int], None]
) -> list[Done]:
    """Every cell's result, in order; those that ``path`` has are taken from it. ``told`` is given how many
    are done, of how many."""
    known = read_done(path)
    packing = {load.case: load.packing_tasks_per_hour for load in loads}
    missing = [cell for cell in dict.fromkeys(cells) if cell not in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    told(len(cells) - len(missing), len(cells))
    with path.open("ab") as file:
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        for count, done in enumerate(_spread(jobs, run_cell, ((c, packing[c.case]) for c in missing)), 1):
            file.write(_encode(done) + b"\n")
            file.flush()
            known[done.cell] = done
            told(len(cells) - len(missing) + count, len(cells))
    return [known[cell] for cell in cells]


def measure_loads(cases: Sequence[Case], pressures: Sequence[float], path: Path, jobs: int) -> list[Load]:
    """The loads of the cases, in order; those that ``path`` has are taken from it."""
    known = {load.case: load for load in _loads.decode(path.read_bytes())} if path.is_file() else {}

    def lacks(case: Case) -> list[float]:
        has = known[case].concurrency if case in known else {}
        return [pressure for pressure in pressures if str(pressure) not in has]

    missing = [(case, lacks(case)) for case in cases if lacks(case) or case not in known]
    for load in _spread(jobs, measure_load, missing):
        before = known[load.case].concurrency if load.case in known else {}
        known[load.case] = msgspec.structs.replace(load, concurrency=before | load.concurrency)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encode(list(known.values())))
    return [known[case] for case in cases]


def _spread(
    jobs: int, work: Callable[..., Result], arguments: Iterable[tuple[object, ...]]
) -> Iterator[Result]:
    """Results as they come. What was begun is given up when the caller is interrupted."""
    listed = list(arguments)
    if jobs == 1 or len(listed) < 2:
        yield from (work(*each) for each in listed)
        return
    # Threads of the caller (a progress bar's) must not be forked.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin_worker) as pool:
        futures: list[Future[Result]] = [pool.submit(work, *each) for each in listed]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker() -> None:
    """Interrupts are the parent's to take; and when it dies, by whatever, so does this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
