"""Sharing out what memory is left, while it is tight: the banker's way.

Calls stand in a line. The first gets what it is expected to need and all that nobody else gets, so it can
run to its end and give all back; then the next is first. The others get a part of what is left beside it,
half at most at a time: growth slows the more, the less there is. No more is ever granted than there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PART = 2
"""A call that is not first gets at most this part of what is left at a time."""


class Asks(NamedTuple):
    """One call of the line. ``want_bytes``: what it may still need; ``kept_bytes``: what it was granted and
    did not use yet; ``due``: it may be granted more now."""

    want_bytes: int
    kept_bytes: int
    due: bool


def share_out(line: Sequence[Asks], spare_bytes: int, step_bytes: int) -> list[int]:
    """How much each may grow from now on, bytes; the sum is ``spare_bytes``, or 0 if that is negative or
    nobody is in line."""
    if not line:
        return []
    left = max(0, spare_bytes)
    grants = [min(left, max(line[0].want_bytes, step_bytes))]
    left -= grants[0]
    for asks in line[1:]:
        grant = min(asks.kept_bytes, left)
        if asks.due:
            more = min(max(asks.want_bytes, step_bytes), left // PART)
            grant = max(grant, more if more >= step_bytes else 0)
        grants.append(grant)
        left -= grant
    grants[0] += left
    return grants
