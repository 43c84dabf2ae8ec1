"""The trace schema: one session a line of JSON, as recorded. ``docs/traces.md`` tells every field.

Nothing is settled here: what a recorder did not know stays ``None``.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]


class TraceError(ValueError):
    """A trace cannot be found, read or understood; the message says where and what would help."""


class TraceTool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tool call. Sizes are in MB (10^6 bytes); ``container_peak_rss_mb`` is of the whole sandbox."""

    name: str
    command_class: str | None = None
    start_s: float | None = None
    duration_s: float | None = None
    exit: int | None = None
    cpu_s: float | None = None
    peak_rss_mb: float | None = None
    container_peak_rss_mb: float | None = None


class TraceTurn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call and the gap after it; ``None`` is unknown. ``blocks``: runs of (first id, how many)."""

    t: float | None = None
    prompt_tokens: Count | None = None
    prompt_chars: Count | None = None
    output_tokens: Count | None = None
    output_chars: Count | None = None
    cached_prefix_tokens: Count | None = None
    blocks: list[tuple[int, Count]] | None = None
    llm_s: float | None = None
    gap_after_s: float | None = None
    gap_kind: str | None = None
    stop: str | None = None
    tools: list[TraceTool] | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One program as recorded. ``tenant`` is ours: other recorders do not write it."""

    session: str
    source: str | None = None
    kind: str | None = None
    parent_session: str | None = None
    parent_turn: int | None = None
    parent_t: float | None = None
    t0: float | None = None
    tenant: str | None = None
    block_size: Count | None = None
    block_scope: str | None = None
    tool_tokens: Count | None = None
    system_tokens: Count | None = None
    turns: list[TraceTurn]

    @property
    def is_agent(self) -> bool:
        """Whether another session started it."""
        return self.kind == "subagent" or (self.kind is None and self.parent_session is not None)


_session = msgspec.json.Decoder(Session)


def read_sessions(path: str | Path) -> Iterator[Session]:
    """The sessions of a trace file, plain or gzipped, in order. Fields that we do not know are skipped.

    Raises ``TraceError`` naming file, line and field.
    """
    path = Path(path)
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield _session.decode(line)
    except msgspec.MsgspecError as error:
        raise TraceError(f"{path}, line {number}: not a session: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TraceError(f"{path}, after line {number}: {reason}") from None


def write_sessions(path: str | Path, sessions: Iterable[Session]) -> None:
    """Write a trace file; gzipped if the name ends in ``.gz``. What is unknown is left out."""
    path = Path(path)
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as out:
        out.writelines(msgspec.json.encode(session) + b"\n" for session in sessions)
