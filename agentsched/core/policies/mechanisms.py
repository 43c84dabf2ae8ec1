"""What the gate consists of, part by part."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """Parts of the gate that can be switched off, to see what each is worth.

    ``peak``: newcomers are held against the predicted peak, not against what is needed now.
    ``overcommit``: found online, not 1. ``leaving``: long gaps give up seats. ``relief``: programs in a
    gap are paused where contexts outgrow the engine. ``tryouts``: newcomers without a seat begin on trial.
    """

    peak: bool = True
    overcommit: bool = True
    leaving: bool = True
    relief: bool = True
    tryouts: bool = True
