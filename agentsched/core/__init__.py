"""The scheduling core: events in, decisions out, no I/O.

Names are imported when first used: most who import the vocabulary need no policies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentsched.core.core import Core
    from agentsched.core.policies import ABLATION_NAMES, POLICY_NAMES, make_policy
    from agentsched.core.state import IllegalEvent

__all__ = ["ABLATION_NAMES", "POLICY_NAMES", "Core", "IllegalEvent", "make_policy"]

_HOMES = {"Core": "core", "IllegalEvent": "state"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'policies')}"), name)
    globals()[name] = value
    return value
