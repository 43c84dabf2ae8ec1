"""The event log: everything that went into a core and came out, one JSON value a line.

The first line is a ``Header``; each further line an ``Entry`` with either an event or a decision.
Feeding the events back into a core like that of the header gives the same decisions (``replay``), so an
incident in production is a test. A log that goes on in further files has a header in each, with a
snapshot of the core at that time: every file replays by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import NamedTuple

import msgspec

from agentsched.core.core import Core
from agentsched.core.decisions import AnyDecision
from agentsched.core.events import AnyEvent
from agentsched.core.policies import make_policy
from agentsched.core.snapshot import Snapshot, SnapshotError, thaw
from agentsched.core.state import IllegalEvent

FORMAT = 2
"""1 had no snapshots."""


class LogError(ValueError):
    """The log cannot be read: it is of another format, or a line is damaged."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """How the run was started. ``run`` holds what the host knows of it (seed, engine, host, ...).

    ``file`` numbers the files of one run from 1 on. ``snapshot`` is the core before the first event of
    this file; without it, the core is a new one.
    """

    agentsched: str
    policy: str
    epoch: int
    started_unix_s: float
    format: int = FORMAT
    run: dict[str, str | int | float] = {}
    file: int = 1
    snapshot: Snapshot | None = None


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


class Step(NamedTuple):
    """One event of a log, at ``line``: what was decided then, and what the core decides now.

    ``impossible``: why the core could not take the event, having gone another way before. ``last``: the
    log ends here, so it may have been cut off before it had all that was decided.
    """

    line: int
    now: float
    event: AnyEvent
    logged: list[AnyDecision]
    decided: list[AnyDecision]
    impossible: str = ""
    last: bool = False

    @property
    def agrees(self) -> bool:
        """Whether both are the same, as far as the log goes."""
        if self.impossible:
            return False
        known = len(self.logged) if self.last else None
        return self.logged == self.decided[:known]


def steps(header: Header, entries: Iterable[Entry]) -> Iterator[Step]:
    """The events of a log fed through a core. Ends where the core cannot take one.

    Raises ``LogError`` if there can be no core like that of the header.
    """
    core = make_core(header)
    step: Step | None = None
    for line, entry in enumerate(entries, 2):
        if entry.decision is not None and step is not None:
            step.logged.append(entry.decision)
        elif entry.event is not None:
            if step is not None:
                yield step
            step = Step(line, entry.now, entry.event, [], [])
            try:
                step.decided.extend(core.handle(entry.now, entry.event))
            except IllegalEvent as error:
                yield step._replace(impossible=str(error))
                return
    if step is not None:
        yield step._replace(last=True)


def make_core(header: Header) -> Core:
    """The core before the first event of the file. Raises ``LogError`` if there can be none like it."""
    try:
        if header.snapshot is not None:
            return thaw(header.snapshot)
        return Core(make_policy(header.policy), epoch=header.epoch)
    except SnapshotError as error:
        raise LogError(f"written by agentsched {header.agentsched}: {error}") from None
    except ValueError as error:
        raise LogError(str(error)) from None


def replay(lines: Iterable[bytes]) -> Iterator[tuple[AnyDecision | None, AnyDecision | None]]:
    """Pairs of (decision in the log, decision of a core fed the log's events), in order.

    The pairs are equal where the core decides as it did; ``None`` where one side has no more. Ends
    where the core has gone so far another way that the log's next event cannot be.
    """
    for step in steps(*read(lines)):
        yield from zip_longest(step.logged, step.decided)
