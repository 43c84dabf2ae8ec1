"""Writes the event log (``agentsched.core.log``) to a file as things happen."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from agentsched.core.decisions import AnyDecision
from agentsched.core.events import AnyEvent
from agentsched.core.log import Entry, Header, encode

_log = logging.getLogger(__name__)


class EventLog:
    """A log file of one run. It must never stop the daemon: when the disk is full, logging ends and
    that is said once."""

    def __init__(self, path: Path, header: Header) -> None:
        """Starts a new file. Raises ``OSError`` if it cannot be written."""
        self._path = path
        self._file = path.open("wb", buffering=0)
        try:
            self._file.write(encode(header) + b"\n")
        except OSError:
            self._file.close()
            raise

    def write(self, now: float, event: AnyEvent, decided: Iterable[AnyDecision]) -> None:
        """One event and all that was decided about it, written out at once."""
        if self._file.closed:
            return
        entries = [Entry(now=now, event=event), *(Entry(now=now, decision=decision) for decision in decided)]
        try:
            self._file.write(b"".join(encode(entry) + b"\n" for entry in entries))
        except OSError as error:
            _log.error("the event log %s ends here: %s", self._path, error)
            self.close()

    def close(self) -> None:
        """No more will be written. May be called twice."""
        self._file.close()
