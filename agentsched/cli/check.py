"""A row of ``agentsched doctor``."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """One row. ``state`` is ok, partial or missing; ``lost`` and ``remedy`` are for the last two."""

    name: str
    state: str
    found: str
    lost: str = ""
    remedy: str = ""
