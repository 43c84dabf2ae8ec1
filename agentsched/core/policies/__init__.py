"""Complete policies by name."""

from __future__ import annotations

from collections.abc import Callable

from agentsched.core.foresight import Oracle
from agentsched.core.policies.agentsched import ABLATIONS, agentsched, clairvoyant
from agentsched.core.policies.continuum import continuum
from agentsched.core.policies.fcfs_lru import fcfs_lru
from agentsched.core.policies.parts import Policy
from agentsched.core.policies.plas import plas
from agentsched.core.policies.saga import saga
from agentsched.core.policies.thunderagent import thunderagent

__all__ = ["ABLATION_NAMES", "POLICY_NAMES", "Policy", "make_policy"]

_POLICIES: dict[str, Callable[[], Policy]] = {
    "fcfs-lru": fcfs_lru,
    "continuum": continuum,
    "saga": saga,
    "thunderagent": thunderagent,
    "plas": plas,
    "agentsched": agentsched,
}
POLICY_NAMES = tuple(_POLICIES)
ABLATION_NAMES = tuple(ABLATIONS)


def make_policy(name: str, oracle: Oracle | None = None) -> Policy:
    """A new policy with nothing learned yet. ``clairvoyant`` is one more name where there is an oracle,
    which only a simulation has. Raises ValueError listing the names."""
    if name == "clairvoyant" and oracle is not None:
        return clairvoyant(oracle)
    try:
        return (_POLICIES | ABLATIONS)[name]()
    except KeyError:
        raise ValueError(f"unknown policy {name!r}; choose one of {', '.join(POLICY_NAMES)}") from None
