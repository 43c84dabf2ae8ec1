"""Chooses the best backend that this machine and this process's place on it allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from agentsched.cgroups import hierarchy, hybrid, v2
from agentsched.cgroups.contract import Backend, HostRefused, Leases
from agentsched.cgroups.none import PlainBackend

Opener = Callable[[hierarchy.Hierarchies, str, Leases], Backend]


class Choice(NamedTuple):
    """The backend, and why each better one is not available."""

    backend: Backend
    refused: tuple[tuple[str, str], ...]


def _partial(found: hierarchy.Hierarchies, instance: str, leases: Leases) -> Backend:
    return v2.open_backend(found, instance, leases, partial=True)


# best first; v2 with controllers missing still kills, freezes and counts CPU time exactly
_OPENERS: tuple[tuple[str, Opener], ...] = (
    ("v2", v2.open_backend),
    ("hybrid", hybrid.open_backend),
    ("v2-partial", _partial),
    ("none", lambda found, instance, leases: PlainBackend(instance, leases)),
)
NAMES = ("auto", *(name for name, _ in _OPENERS))


def choose(
    instance: str, leases: Leases, wanted: str = "auto", found: hierarchy.Hierarchies | None = None
) -> Choice:
    """Open a backend for ``instance``: the best one, or the one that is wanted.

    Raises ``HostRefused`` if that one is not available, ``ValueError`` for a name not in ``NAMES``.
    """
    if wanted not in NAMES:
        raise ValueError(f"backend {wanted!r} is not one of {', '.join(NAMES)}")
    found = hierarchy.here() if found is None else found
    refused: list[tuple[str, str]] = []
    for name, opener in _OPENERS:
        if wanted not in ("auto", name):
            continue
        try:
            return Choice(opener(found, instance, leases), tuple(refused))
        except (HostRefused, OSError) as error:
            refused.append((name, str(error)))
    raise HostRefused("; ".join(f"the {name} backend is not available: {why}" for name, why in refused))
