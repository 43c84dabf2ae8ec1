"""Constants of our policy set by hand for one run: what finding them online costs or saves.

They are put into the classes that hold them and taken back afterwards, so one process makes one such run at
a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from agentsched.core.ledger import Ledger
from agentsched.core.policies.overcommit import Overcommit


@contextmanager
def set_by_hand(constants: Sequence[tuple[str, float]]) -> Iterator[None]:
    """Within it, each constant has its value. Raises ``ValueError`` for a name that is not known."""
    with ExitStack() as stack:
        for name, value in constants:
            if name not in CONSTANTS:
                raise ValueError(f"no constant {name!r}; there are: {', '.join(CONSTANTS)}")
            for owner, attribute, held in CONSTANTS[name](value):
                stack.callback(setattr, owner, attribute, getattr(owner, attribute))
                setattr(owner, attribute, held)
        yield


Setting = tuple[type, str, object]


def _overcommit(factor: float) -> list[Setting]:
    """One factor throughout."""
    return [(Overcommit, name, factor) for name in ("FIRST", "LEAST", "MOST", "LIFTED_MOST")]


def _relief_share(share: float) -> list[Setting]:
    return [(Overcommit, "RELIEF_SHARE", share)]


def _price(times: float) -> list[Setting]:
    found = Ledger.price
    return [(Ledger, "price", lambda ledger: times * found(ledger))]


CONSTANTS: dict[str, Callable[[float], list[Setting]]] = {
    "overcommit": _overcommit,
    "relief share": _relief_share,
    "price, times": _price,
}
"""``overcommit``: the factor, instead of finding it. ``relief share``: of the engine's
time, with one seat.
``price, times``: what is found online times this."""
