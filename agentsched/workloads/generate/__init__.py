"""Workloads made from published figures, each seeded: the same options give the same programs.

``generate(name, options)`` is for command lines; the functions themselves are for code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from agentsched.workloads.generate import continuum, saga
from agentsched.workloads.generate.text2sql import text2sql
from agentsched.workloads.scripts import Script

GENERATORS: dict[str, Callable[..., list[Script]]] = {
    "saga-swe": saga.swe,
    "saga-web": saga.web,
    "saga-tenants": saga.tenants,
    "continuum-swe": continuum.swe,
    "continuum-bfcl": continuum.bfcl,
    "text2sql": text2sql,
}


def generate(name: str, options: Mapping[str, str]) -> list[Script]:
    """Run the generator ``name`` with ``options`` read by the types of its parameters' defaults.

    Raises ``ValueError`` naming the generator or option that does not exist, or the value that is wrong.
    """
    if name not in GENERATORS:
        raise ValueError(f"no generator {name!r}; there are: {', '.join(GENERATORS)}")
    known = inspect.signature(GENERATORS[name]).parameters
    values: dict[str, int | float | str] = {}
    for option, text in options.items():
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; there are: {', '.join(known)}")
        kind = type(known[option].default)
        try:
            values[option] = kind(text)
        except ValueError:
            raise ValueError(f"{name}: {option} must be of type {kind.__name__}, got {text!r}") from None
    return GENERATORS[name](**values)
