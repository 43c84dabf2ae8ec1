"""A log cut into files, each of which begins with a snapshot, as a daemon writes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentsched.core import Core, make_policy
from agentsched.core.log import Entry, Header, encode, read, steps
from agentsched.core.snapshot import freeze


def cut(policy: str, entries: Sequence[Entry], every: int) -> Iterator[list[bytes]]:
    """The lines of each file; ``every``: events in a file."""
    core = Core(make_policy(policy))
    lines: list[bytes] = []
    events = 0
    for entry in entries:
        if entry.event is not None:
            if events % every == 0:
                if lines:
                    yield lines
                header = Header(
                    agentsched="test",
                    policy=policy,
                    epoch=1,
                    started_unix_s=0.0,
                    file=events // every + 1,
                    snapshot=freeze(core),
                )
                lines = [encode(header)]
            events += 1
            core.handle(entry.now, entry.event)
        lines.append(encode(entry))
    if lines:
        yield lines


def check_each_file_replays(policy: str, entries: Sequence[Entry], every: int) -> int:
    """How many files there were."""
    files = 0
    for lines in cut(policy, entries, every):
        assert all(step.agrees for step in steps(*read(lines)))
        files += 1
    return files
