"""Making runs over processes, and the files that let a comparison go on where it stopped.

Each run that was made is one line of a file and is not made again. What the file does not know is the version
of the code: after a change, start with an empty file.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

import msgspec

from agentsched.workloads.grid.cases import Case, Load, measure_load
from agentsched.workloads.grid.cells import Cell, Done, Run, make_run

Result = TypeVar("Result")

_encode = msgspec.json.encode
_done = msgspec.json.Decoder(Done)
_loads = msgspec.json.Decoder(list[Load])


def read_done(path: Path, most_s: float = 0.0) -> dict[Run, Done]:
    """The runs that the file has; a last line that was cut off is left out, and so are runs that were
    stopped earlier than after ``most_s``."""
    if not path.is_file():
        return {}
    lines = path.read_bytes().splitlines(keepends=True)
    done = (_done.decode(line) for line in lines if line.endswith(b"\n"))
    return {each.run: each for each in done if each.summary or each.cpu_s >= most_s}


def run_cells(
    wanted: Callable[[dict[Run, Done]], list[Cell]],
    path: Path,
    jobs: int,
    most_s: float,
    told: Callable[[int, int], None],
) -> tuple[list[Cell], dict[Run, Done]]:
    """Make the runs of the cells that are ``wanted``, given what is known; and again, until all are known.

    ``path`` keeps the results, a run may take ``most_s`` seconds, and ``told`` is given how many
    runs are made, of how many.
    """
    known = read_done(path, most_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        file.seek(file.truncate(path.read_bytes().rfind(b"\n") + 1))
        while True:
            cells = wanted(known)
            packing = {cell.run: cell.packing for cell in cells}
            missing = [run for run in packing if run not in known]
            told(len(packing) - len(missing), len(packing))
            if not missing:
                return cells, known
            arguments = ((run, packing[run], most_s) for run in missing)
            for count, done in enumerate(_spread(jobs, make_run, arguments), 1):
                file.write(_encode(done) + b"\n")
                file.flush()
                known[done.run] = done
                told(len(packing) - len(missing) + count, len(packing))


def measure_loads(cases: Mapping[Case, Collection[float]], path: Path, jobs: int) -> list[Load]:
    """The loads of the cases, in order, for their pressures; what ``path`` has is taken from it."""
    known = {load.case: load for load in _loads.decode(path.read_bytes())} if path.is_file() else {}

    def lacks(case: Case) -> list[float]:
        has = known[case].concurrency if case in known else {}
        return [pressure for pressure in cases[case] if str(pressure) not in has]

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
