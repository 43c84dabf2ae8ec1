"""Writes the event log (``agentsched.core.log``) to files as things happen.

What is written has the name that was asked for. When that file is full, or left from an earlier run, it
becomes ``NAME-000001.SUFFIX`` and so on, and the oldest of these are deleted. Each begins with a snapshot,
so each replays by itself. Prompts and answers are not in it: only their sizes, and names of programs and
tools.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from agentsched.core.core import Core
from agentsched.core.decisions import AnyDecision
from agentsched.core.events import AnyEvent
from agentsched.core.log import Entry, Header, encode
from agentsched.core.snapshot import freeze

_log = logging.getLogger(__name__)

RETRY_S = 60.0


class Limits(NamedTuple):
    """Bytes after which a file is full, and how many files are kept."""

    file_bytes: int = 64_000_000
    files: int = 8


class EventLog:
    """The log of one core. It must never stop the daemon: when the disk is full, the file ends and that is
    said once; a new one is tried now and then."""

    def __init__(self, path: Path, header: Header, core: Core, limits: Limits | None = None) -> None:
        """Starts a new file. Raises ``OSError`` if it cannot be written."""
        self._path = path
        self._header = header
        self._limits = limits or Limits()
        self._failing = False
        self._now = self._retry_s = 0.0
        self._begin(core, header.file)

    def write(self, now: float, event: AnyEvent, decided: Iterable[AnyDecision]) -> None:
        """One event and all that was decided about it, written out at once."""
        self._now = now
        if self._file.closed:
            return
        entries = [Entry(now=now, event=event), *(Entry(now=now, decision=decision) for decision in decided)]
        lines = b"".join(encode(entry) + b"\n" for entry in entries)
        try:
            written = self._file.write(lines)
            if written < len(lines):
                raise OSError("there is no room for more")
        except OSError as error:
            self._fail(error)
        self._entries_bytes += len(lines)

    def go_on(self, core: Core) -> None:
        """After an event: begin the next file, if it is time for that. Takes about 40 ms for a core with a
        thousand live programs, in a run of some hundred thousand lines."""
        full = self._entries_bytes >= max(self._limits.file_bytes - self._begin_bytes, self._begin_bytes)
        if self._file.closed:
            full = self._failing and self._now >= self._retry_s
        if full:
            try:
                self._file.close()
                self._begin(core, self._header.file + 1)
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        """No more will be written. May be called twice."""
        self._file.close()
        self._failing = False

    def _begin(self, core: Core, number: int) -> None:
        header = msgspec.structs.replace(self._header, file=number, snapshot=freeze(core))
        self._header = msgspec.structs.replace(header, snapshot=None)
        self._set_aside()
        self._file = self._path.open("wb", buffering=0)
        line = encode(header) + b"\n"
        self._entries_bytes, self._begin_bytes = 0, len(line)
        try:
            if self._file.write(line) < len(line):
                raise OSError("there is no room for more")
        except OSError:
            self._file.close()
            self._path.unlink(missing_ok=True)  # or the next try would put it in the place of a whole one
            raise
        if self._failing:
            self._failing = False
            _log.error("the event log %s goes on; what happened meanwhile is not in it", self._path)

    def _fail(self, error: OSError) -> None:
        self._file.close()
        self._retry_s = self._now + RETRY_S
        if not self._failing:
            self._failing = True
            _log.error("the event log %s ends here: %s; tried again every %g s", self._path, error, RETRY_S)

    def _set_aside(self) -> None:
        """Make room for a new file under the log's name."""
        if not self._path.is_file() or not self._path.stat().st_size:
            return
        name = re.compile(re.escape(self._path.stem) + r"-(\d{6,})" + re.escape(self._path.suffix))
        known = [
            (int(found.group(1)), p) for p in self._path.parent.iterdir() if (found := name.fullmatch(p.name))
        ]
        known.sort()
        last = known[-1][0] if known else 0
        self._path.rename(self._path.with_name(f"{self._path.stem}-{last + 1:06d}{self._path.suffix}"))
        for _, old in known[: max(0, len(known) + 2 - self._limits.files)]:
            old.unlink()
