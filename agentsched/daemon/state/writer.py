"""Writes batches in a thread, one at a time, so that the event loop never waits for a disk.

What changes meanwhile is gathered by key, the latest only: so what waits is bounded by what there is, however
slow the disk. A batch that cannot be written is tried again with the next one; the daemon goes on.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from agentsched.daemon.state.database import Batch, Database

_log = logging.getLogger(__name__)

FLUSH_S = 0.1
"""What happened in so long a time before a sudden death is lost."""
RETRY_S = 5.0


class Writer:
    """``gather`` gives all changes since it was last called. Belongs to one event loop."""

    def __init__(self, database: Database, gather: Callable[[], Batch]) -> None:
        self.failing = False
        """Whether the last batch could not be written."""
        self._database = database
        self._gather = gather
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="agentsched-state")
        self._unwritten: Batch = {}
        self._pending = False
        self._gathered = self._written = 0
        """Batches so far."""
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    def changed(self) -> None:
        """There is something to write, before long."""
        self._pending = True
        if self._timer is None and self._writing is None and not self._closed:
            pause_s = RETRY_S if self.failing else FLUSH_S
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._begin)

    async def written(self) -> None:
        """Wait until all that has changed so far is in the file: a write or two. Not while it cannot be."""
        wanted = self._gathered + self._pending
        while self._written < wanted and not self.failing and not self._closed:
            if self._writing is None:
                if self._timer is not None:
                    self._timer.cancel()
                self._begin()
            assert self._writing is not None
            await asyncio.wait([self._writing])

    async def close(self) -> None:
        """Write what there is, and close the file."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await self._writing
        await self._write()
        self._thread.shutdown()
        self._database.close()

    def _begin(self) -> None:
        self._timer = None
        self._writing = asyncio.create_task(self._write(), name="state writer")

    async def _write(self) -> None:
        self._pending = False
        self._gathered = number = self._gathered + 1
        batch = {**self._unwritten, **self._gather()}
        try:
            if batch:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._database.write, batch)
        except sqlite3.Error as error:
            self._unwritten, self._pending = batch, True
            self._say_failing(error)
        except Exception:
            _log.exception("what has changed cannot be written to the state %s", self._database.path)
            self.failing = True
        else:
            self._unwritten, self._written = {}, number
            if self.failing:
                _log.error("the state %s is written again, and nothing is missing", self._database.path)
                self.failing = False
        finally:
            self._writing = None
        if self._pending:
            self.changed()

    def _say_failing(self, error: sqlite3.Error) -> None:
        if not self.failing:
            _log.error(
                "the state %s cannot be written: %s. The daemon goes on; what happens from now on is lost "
                "if it dies before this is mended. Tried again every %g s",
                self._database.path,
                error,
                RETRY_S,
            )
        self.failing = True
