"""The schema of the state file, as the steps that led to it.

Step n brings a file of schema n - 1 to schema n; a file knows its own (``PRAGMA user_version``). Each is
done in a transaction of its own, so a daemon that is killed in the middle finds whole steps. Steps that were
released are never changed: who needs another schema adds one.
"""

from __future__ import annotations

Step = tuple[str, ...]
"""SQL statements."""

_FIRST: Step = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """
    CREATE TABLE programs (
        program TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        parent TEXT NOT NULL,
        opened_unix_s REAL NOT NULL,
        seen_unix_s REAL NOT NULL,
        calls_done INTEGER NOT NULL,
        context_tokens INTEGER NOT NULL,
        more TEXT NOT NULL -- records.ProgramFacts as JSON
    )
    """,
    """
    CREATE TABLE identity ( -- tables of daemon/identity.py, in the order in which entries were last changed
        number INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        key BLOB NOT NULL,
        value TEXT NOT NULL, -- JSON
        UNIQUE (kind, key)
    )
    """,
    "CREATE TABLE models (model TEXT PRIMARY KEY, saved_unix_s REAL NOT NULL, value BLOB NOT NULL)",
    """
    CREATE TABLE records ( -- of operators and accounts; records.py has the kinds
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL, -- JSON
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID
    """,
)

MIGRATIONS: tuple[Step, ...] = (_FIRST,)
