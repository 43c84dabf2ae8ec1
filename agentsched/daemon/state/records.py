"""What the rows of the state file mean: programs, identity, models and accounts, to and from values.

Rows that cannot be read (somebody edited them, or a fault of ours) are left out, and that is said.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from agentsched.daemon.accounts import Saved
from agentsched.daemon.charges import Charges
from agentsched.daemon.state.database import Database, Row
from agentsched.graphs.predict import Learned

_log = logging.getLogger(__name__)

T = TypeVar("T")
ACCOUNTS, EVERYBODY = "accounts", "all"
"""Kind and key of the one record of ``accounts.Saved``."""
CHARGES = "charges"
"""Kind of the records of ``charges.Charges``, by tenant."""
MODELS = "core"


class ProgramFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What else is kept of a program. ``asked``: tool calls without a result yet, with their gap keys."""

    weight: float = 1.0
    priority: int = 0
    expected_calls: int = 0
    host: str = ""
    deadline_unix_s: float | None = None
    first_prompt_tokens: int = 0
    shared_tokens: int = 0
    gap_key: str = ""
    asked: dict[str, str] = {}


class SavedProgram(msgspec.Struct, frozen=True):
    """One open program. Times are seconds since 1970, by the clock of this machine."""

    program: str
    tenant: str
    parent: str
    opened_unix_s: float
    seen_unix_s: float
    calls_done: int
    context_tokens: int
    facts: ProgramFacts

    def row(self) -> Row:
        """Without the key."""
        plain = (self.tenant, self.parent, self.opened_unix_s, self.seen_unix_s)
        return (*plain, self.calls_done, self.context_tokens, text(self.facts))


def text(value: object) -> str:
    """As JSON."""
    return msgspec.json.encode(value).decode()


def programs(database: Database) -> list[SavedProgram]:
    """In order of their opening."""

    def program(row: Row) -> SavedProgram:
        *plain, more = row
        columns = zip(SavedProgram.__struct_fields__, plain, strict=False)
        return msgspec.convert({**dict(columns), "facts": msgspec.json.decode(more)}, SavedProgram)

    return _readable(
        "programs", program, database.rows("SELECT * FROM programs ORDER BY opened_unix_s, rowid")
    )


def identity(database: Database, kind: str, key: type[T], value: Any) -> list[tuple[T, Any]]:
    """One table, what was used last at the end. ``key`` is str or bytes."""
    decoder = msgspec.json.Decoder(value)

    def entry(row: Row) -> tuple[T, Any]:
        return msgspec.convert(row[0], key), decoder.decode(row[1])

    query = "SELECT key, value FROM identity WHERE kind = ? ORDER BY number"
    return _readable(f"identity ({kind})", entry, database.rows(query, (kind,)))


def records(database: Database, kind: str, value: type[T]) -> dict[str, T]:
    """All records of a kind, by key."""
    query = "SELECT key, value FROM records WHERE kind = ? ORDER BY key"
    decoder = msgspec.json.Decoder(value)
    return dict(
        _readable(
            f"records ({kind})", lambda row: (row[0], decoder.decode(row[1])), database.rows(query, (kind,))
        )
    )


def accounts(database: Database) -> tuple[Saved, dict[str, Charges]]:
    """Tenants and keys, and what each tenant was charged."""
    saved = records(database, ACCOUNTS, Saved).get(EVERYBODY, Saved())
    return saved, records(database, CHARGES, Charges)


def models(database: Database) -> Learned | None:
    """What the core's models knew, if that was kept."""
    rows = database.rows("SELECT value FROM models WHERE model = ?", (MODELS,))
    known = _readable(
        "models", lambda row: msgspec.msgpack.decode(zlib.decompress(row[0]), type=Learned), rows
    )
    return known[0] if known else None


def models_row(known: Learned) -> Row:
    """Without the key. Takes milliseconds."""
    return (time.time(), zlib.compress(msgspec.msgpack.encode(known)))


def _readable(what: str, read: Callable[[Row], T], rows: Iterable[Row]) -> list[T]:
    kept: list[T] = []
    unread, why = 0, ""
    for row in rows:
        try:
            kept.append(read(row))
        except (msgspec.MsgspecError, zlib.error, TypeError, ValueError) as error:
            unread, why = unread + 1, str(error)
    if unread:
        _log.error("%d rows of the state's %s cannot be read and are left out: %s", unread, what, why)
    return kept
