"""The state file: opened by one daemon at a time, brought to this version's schema, written in batches.

* A file of a **newer** schema is refused: an older daemon would lose what it does not know.
* A **damaged** file is set aside under another name, loudly, and a new one begun.
* WAL with ``synchronous=NORMAL``: what was committed survives the daemon's death, however sudden, since
  the system has it then. Only when the machine itself goes down the last commits may be lost (never the
  file's consistency); so are then the engine's KV and every client's connection. ``FULL`` would wait for
  the disk at every commit to save the last seconds of that.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agentsched import __version__
from agentsched.daemon.state.migrations import MIGRATIONS, Step

_log = logging.getLogger(__name__)

FILE = "state.sqlite"
_COMPANIONS = ("", "-wal", "-shm")
_APPLICATION = int.from_bytes(b"agsc", "big")
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

CHECKPOINT_PAGES = 4_000
"""So much (16 MB) comes into the log before it is copied into the file. Keys of identity are hashes, so each
batch changes nearly every page of their index: most of what is copied more often is copied in vain."""

Key = tuple[Any, ...]
Row = tuple[Any, ...]
Batch = Mapping[tuple[str, Key], Row | Callable[[], Row] | None]
"""(table, key) to the rest of the row, which may be worked out by the writer; None: it is gone."""

_PUT = {
    "facts": "INSERT OR REPLACE INTO facts VALUES (?, ?)",
    "programs": "INSERT OR REPLACE INTO programs VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "identity": "INSERT OR REPLACE INTO identity (kind, key, value) VALUES (?, ?, ?)",
    "models": "INSERT OR REPLACE INTO models VALUES (?, ?, ?)",
    "records": "INSERT OR REPLACE INTO records VALUES (?, ?, ?)",
}
_DROP = {
    "facts": "DELETE FROM facts WHERE name = ?",
    "programs": "DELETE FROM programs WHERE program = ?",
    "identity": "DELETE FROM identity WHERE kind = ? AND key = ?",
    "models": "DELETE FROM models WHERE model = ?",
    "records": "DELETE FROM records WHERE kind = ? AND key = ?",
}


class StateError(Exception):
    """The state cannot be used as it is; the message says why and what to do."""


class _Damaged(Exception):
    pass


class Database:
    """One folder's state. Not thread-safe: one thread after the other may use it. Raises ``StateError``
    on opening, and ``sqlite3.Error`` later."""

    def __init__(self, folder: Path, migrations: Sequence[Step] = MIGRATIONS) -> None:
        self.path = folder / FILE
        self._migrations = migrations
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(folder / "lock")
        except OSError as error:
            raise StateError(f"the state folder {folder} cannot be used: {error}") from error
        try:
            self._connection = self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """May be called twice."""
        if self._lock >= 0:
            self._connection.close()
            os.close(self._lock)
            self._lock = -1

    def begin_epoch(self) -> int:
        """A number above that of every earlier daemon, so that engines tell its orders from theirs.

        The seconds since 1970, if they are: so a daemon without state, or with a new one, is later too.
        """
        last = next(self.rows("SELECT value FROM facts WHERE name = 'epoch'"), (0,))[0]
        epoch = max(int(last) + 1, int(time.time()))
        try:
            self.write({("facts", ("epoch",)): (epoch,), ("facts", ("agentsched",)): (__version__,)})
        except sqlite3.Error as error:
            _log.error("%s cannot be written: %s", self.path, error)
        return epoch

    def rows(self, query: str, values: Iterable[Any] = ()) -> Iterator[Row]:
        yield from self._connection.execute(query, tuple(values))

    def write(self, batch: Batch) -> None:
        """All of the batch, or nothing."""
        puts: dict[str, list[Row]] = {}
        drops: dict[str, list[Row]] = {}
        for (table, key), row in batch.items():
            if row is None:
                drops.setdefault(table, []).append(key)
            else:
                puts.setdefault(table, []).append((*key, *(row() if callable(row) else row)))
        with self._transaction() as connection:
            for table, keys in drops.items():
                connection.executemany(_DROP[table], keys)
            for table, rows in puts.items():
                connection.executemany(_PUT[table], rows)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite itself rolls back where the disk is full
                self._connection.execute("ROLLBACK")
            raise

    def _open(self) -> sqlite3.Connection:
        try:
            try:
                return self._connect()
            except _Damaged as damage:
                self._set_aside(damage)
                return self._connect()
        except (sqlite3.Error, OSError, _Damaged) as error:
            raise StateError(f"the state {self.path} cannot be used: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        # It knows who works on what; the file's companions get the same mode.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            self._check(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._connection = connection
            self._migrate()
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.DatabaseError) and _code(error) in _DAMAGED:
                raise _Damaged(str(error)) from error
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and application != _APPLICATION:
            raise StateError(f"{self.path} is a database of something else; choose another folder")
        if schema > len(self._migrations):
            found = connection.execute("SELECT value FROM facts WHERE name = 'agentsched'").fetchone()
            raise StateError(
                f"the state {self.path} has schema {schema}, written by agentsched "
                f"{found[0] if found else 'of a later version'}; this is agentsched {__version__}, which "
                f"knows schemas up to {len(self._migrations)}. Run the later version, or choose another "
                "folder with --state"
            )
        (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise _Damaged(sound)

    def _migrate(self) -> None:
        (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        for number, step in enumerate(self._migrations[schema:], schema + 1):
            with self._transaction() as connection:
                for statement in step:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            _log.info("%s has schema %d now", self.path, number)

    def _set_aside(self, damage: Exception) -> None:
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{FILE}.damaged-{at}-{os.getpid()}")
        for companion in _COMPANIONS:
            with suppress(FileNotFoundError):
                os.rename(f"{self.path}{companion}", f"{aside}{companion}")
        _log.error(
            "THE STATE %s IS DAMAGED (%s). It is kept as %s, and a new one is begun: programs, accounts and "
            "what was learned are not known any more",
            self.path,
            damage,
            aside,
        )


def _lock(path: Path) -> int:
    """Held until the process ends, however it does. Raises ``StateError`` if another process has it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise StateError(
            f"the state folder {path.parent} is in use by another daemon (process {owner or 'unknown'}); "
            "choose another one with --state, or --no-state"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _code(error: sqlite3.Error) -> int:
    """The primary result code."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
