"""The event log: everything that went into a core and came out, one JSON value a line.

The first line is a ``Header``; each further line an ``Entry`` with either an event or a decision.
Feeding the events back into a new core with the header's policy and epoch gives the same decisions
(``replay``), so an incident in production is a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from agentsched.core.core import Core
from agentsched.core.decisions import AnyDecision
from agentsched.core.events import AnyEvent
from agentsched.core.policies import make_policy
from agentsched.core.state import IllegalEvent

FORMAT = 1


class LogError(ValueError):
    """The log cannot be read: it is of another format, or a line is damaged."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """How the run was started. ``run`` holds what the host knows of it (seed, engine, host, ...)."""

    agentsched: str
    policy: str
    epoch: int
    started_unix_s: float
    format: int = FORMAT
    run: dict[str, str | int | float] = {}


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event or one decision at ``now`` (monotonic seconds)."""

    now: float
    event: AnyEvent | None = None
    decision: AnyDecision | None = None


_header = msgspec.json.Decoder(Header)
_entry = msgspec.json.Decoder(Entry)


def encode(item: Header | Entry) -> bytes:
    """One line, without its line end."""
    return msgspec.json.encode(item)


def read(lines: Iterable[bytes]) -> tuple[Header, Iterator[Entry]]:
    """Header and entries of a log. A last line cut off by a crash is left out.

    Raises ``LogError`` naming the line.
    """
    numbered = enumerate(lines, 1)
    try:
        header = _header.decode(next(numbered)[1])
    except StopIteration:
        raise LogError("the log is empty: it has no header line") from None
    except msgspec.MsgspecError as error:
        raise LogError(f"line 1 is not a log header: {error}") from None
    if header.format > FORMAT:
        raise LogError(f"the log has format {header.format}; this version reads up to {FORMAT}")
    return header, _entries(numbered)


def _entries(numbered: Iterator[tuple[int, bytes]]) -> Iterator[Entry]:
    for number, line in numbered:
        try:
            yield _entry.decode(line)
        except msgspec.MsgspecError as error:
            if not line.endswith(b"\n"):
                return
            raise LogError(f"line {number} is damaged: {error}") from None


def replay(lines: Iterable[bytes]) -> Iterator[tuple[AnyDecision | None, AnyDecision | None]]:
    """Pairs of (decision in the log, decision of a new core fed the log's events), in order.

    The pairs are equal where the core decides as it did; ``None`` where one side has no more. Ends
    where the new core has gone so far another way that the log's next event cannot be.
    """
    header, entries = read(lines)
    core = Core(make_policy(header.policy), epoch=header.epoch)
    expected: list[AnyDecision] = []
    for entry in entries:
        if entry.decision is not None:
            yield entry.decision, expected.pop(0) if expected else None
        if entry.event is not None:
            yield from ((None, missing) for missing in expected)
            try:
                expected = core.handle(entry.now, entry.event)
            except IllegalEvent:
                return
    yield from ((None, missing) for missing in expected)
