"""A view of a recorded period, from the event log.

The log's events go through a core like the one that wrote it, so that what it expected then is known too.
Where that core cannot be had (the log is of another version), the rest is shown, and that is said.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec

from agentsched.core.core import Core
from agentsched.core.decisions import AnyDecision
from agentsched.core.events import AnyEvent
from agentsched.core.log import Entry, Header, LogError, make_core, read
from agentsched.core.state import IllegalEvent
from agentsched.daemon.dashboard.model import ALL, Model, thinned
from agentsched.daemon.dashboard.rows import View
from agentsched.daemon.dashboard.scoping import view_of
from agentsched.daemon.errors import ApiError

LOOK_S = 1.0
MOST_S = 6 * 3600.0
"""Of a period that a page asks for."""

STARTED = "started_s"
"""In a header's ``run``: the monotonic time of its ``started_unix_s``."""


class _Happened(NamedTuple):
    now: float
    event: AnyEvent
    decided: list[AnyDecision]


def recorded(
    logs: Iterable[Path],
    from_s: float = -inf,
    to_s: float = inf,
    progress: Callable[[float], None] | None = None,
) -> View:
    """The view at ``to_s`` (or the end) with all that happened since ``from_s``, monotonic seconds. ``logs``
    are files of one run. ``progress`` is told the time that it has come to.

    Raises ``LogError`` (naming the file) or ``OSError``, and ``LogError`` if nothing happened then.
    """
    reading: _Reading | None = None
    for path in _in_order(logs):
        try:
            with path.open("rb") as lines:
                header, entries = read(lines)
                reading = reading or _Reading(header, from_s)
                reading.take(header, _until(entries, to_s), progress)
        except LogError as error:
            raise LogError(f"{path}: {error}") from None
    if reading is None or reading.model.since_s is None:
        raise LogError("nothing happened in that period")
    return reading.view()


class _Reading:
    def __init__(self, header: Header, from_s: float) -> None:
        self.model = Model(header.policy, ALL)
        self._header = header
        self._from_s = from_s
        self._core: Core | None = None
        self._looked_s = -inf
        self._started_s: float | None = None
        self._notes: list[str] = []

    def take(
        self, header: Header, entries: Iterator[Entry], progress: Callable[[float], None] | None
    ) -> None:
        self._core = self._core or self._made(header)
        for happened in _grouped(entries):
            if self._started_s is None:
                self._started_s = float(header.run.get(STARTED, happened.now))
            if happened.now >= self._from_s and self.model.since_s is None and self._core is not None:
                self.model.settle(happened.now, self._core.state, {})
            self._handle(happened)
            if happened.now < self._from_s:
                continue
            self.model.apply(*happened)
            if happened.now >= self._looked_s + LOOK_S:
                self._looked_s = happened.now
                if self._core is not None:
                    self.model.look(happened.now, self._core)
                if progress is not None:
                    progress(happened.now)

    def view(self) -> View:
        started_s = 0.0 if self._started_s is None else self._started_s
        unix_s = self._header.started_unix_s + self.model.now - started_s
        return thinned(self.model.view(unix_s, self._notes))

    def _made(self, header: Header) -> Core | None:
        try:
            return make_core(header)
        except LogError as error:
            self._without(str(error))
            return None

    def _handle(self, happened: _Happened) -> None:
        if self._core is None:
            return
        try:
            self._core.handle(happened.now, happened.event)
        except IllegalEvent as error:
            self._core = None
            self._without(f"at {happened.now:.1f} s, {error}")

    def _without(self, why: str) -> None:
        self._notes.append(
            f"What the scheduler expected is not shown: this version cannot replay the log ({why})."
        )


def _in_order(logs: Iterable[Path]) -> list[Path]:
    """By the number of the file in its run."""
    numbered = []
    for path in logs:
        try:
            with path.open("rb") as lines:
                header, _ = read(lines)
        except LogError as error:
            raise LogError(f"{path}: {error}") from None
        numbered.append((header.epoch, header.file, str(path), path))
    if len({epoch for epoch, *_ in numbered}) > 1:
        raise LogError("these logs are of several runs: name files of one")
    return [path for *_, path in sorted(numbered)]


def _until(entries: Iterable[Entry], to_s: float) -> Iterator[Entry]:
    for entry in entries:
        if entry.now > to_s:
            return
        yield entry


def _grouped(entries: Iterable[Entry]) -> Iterator[_Happened]:
    happened: _Happened | None = None
    for entry in entries:
        if entry.event is not None:
            if happened is not None:
                yield happened
            happened = _Happened(entry.now, entry.event, [])
        elif entry.decision is not None and happened is not None:
            happened.decided.append(entry.decision)
    if happened is not None:
        yield happened


class Recording:
    """The event log of a running daemon. It is read by a process of its own, so that calls do not wait."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self, from_s: float, to_s: float, tenant: tuple[str, str] | None) -> bytes:
        """A ``View`` as JSON. ``tenant``: its name, and what the names of its programs begin with. Raises
        ``ApiError``."""
        if not 0 < to_s - from_s <= MOST_S:
            raise ApiError(400, f"to_s must be after from_s, by {MOST_S / 3600:.0f} hours at most")
        logs = await asyncio.to_thread(self._files, from_s)
        command = [
            sys.executable,
            "-m",
            __name__,
            str(from_s),
            str(to_s),
            *(tenant or ("", "")),
            *map(str, logs),
        ]
        process = await asyncio.create_subprocess_exec(
            "nice", *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            body, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise ApiError(404, errors.decode(errors="replace").strip() or "the log cannot be read")
        return body

    def _files(self, from_s: float) -> list[Path]:
        """The run's files that may have something of then: the last one that begins before, and all after."""
        name = f"{self._path.stem}-*{self._path.suffix}"
        known = [*sorted(self._path.parent.glob(name)), self._path]
        begins = [(path, _begins_s(path)) for path in known]
        epoch = begins[-1][1][0]
        mine = [(path, begin_s) for path, (its, begin_s) in begins if its == epoch]
        first = max((at for at, (_, begin_s) in enumerate(mine) if begin_s <= from_s), default=0)
        return [path for path, _ in mine[first:]]


def _begins_s(path: Path) -> tuple[int, float]:
    """Epoch of the run, and the time of the first entry."""
    try:
        with path.open("rb") as lines:
            header, entries = read(lines)
            return header.epoch, next((entry.now for entry in entries), inf)
    except (LogError, OSError):
        return -1, inf


def main() -> None:
    """FROM_S TO_S TENANT SCOPE LOG...: write the view as JSON."""
    from_s, to_s, tenant, scope, *logs = sys.argv[1:]
    try:
        view = recorded(map(Path, logs), float(from_s), float(to_s))
    except (LogError, OSError) as error:
        sys.exit(str(error))
    if tenant:
        view = view_of(view, tenant, lambda name: name.removeprefix(scope))
    sys.stdout.buffer.write(msgspec.json.encode(view))


if __name__ == "__main__":
    main()
