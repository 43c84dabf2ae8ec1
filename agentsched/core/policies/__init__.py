"""Complete policies by name. The module of one is imported when it is first made."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from agentsched.core.policies.parts import Policy

if TYPE_CHECKING:
    from agentsched.core.foresight import Oracle

__all__ = ["ABLATION_NAMES", "POLICY_NAMES", "Policy", "import_all", "make_policy"]

POLICY_NAMES = ("fcfs-lru", "continuum", "saga", "thunderagent", "plas", "agentsched")
"""Each is a function of the module that has its name, with ``_`` for ``-``."""

_WITHOUT = "agentsched-no-"
_MECHANISMS = ("peak", "overcommit", "leaving", "relief", "tryouts", "retention", "order")
ABLATION_NAMES = tuple(f"{_WITHOUT}{mechanism}" for mechanism in _MECHANISMS)
"""Ours with one mechanism switched off."""


def make_policy(name: str, oracle: Oracle | None = None) -> Policy:
    """A new policy with nothing learned yet. ``clairvoyant`` is one more name where there is an oracle,
    which only a simulation has. Raises ValueError listing the names."""
    if name == "clairvoyant" and oracle is not None:
        from agentsched.core.policies.agentsched import clairvoyant

        return clairvoyant(oracle)
    if name in ABLATION_NAMES:
        from agentsched.core.policies.agentsched import without

        return without(name, name.removeprefix(_WITHOUT))
    if name not in POLICY_NAMES:
        raise ValueError(f"unknown policy {name!r}; choose one of {', '.join(POLICY_NAMES)}")
    made = getattr(_module(name), name.replace("-", "_"))()
    assert isinstance(made, Policy)
    return made


def import_all() -> None:
    """Import the parts of all policies, for who looks for them among what is imported."""
    for name in POLICY_NAMES:
        _module(name)


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name.replace('-', '_')}")
