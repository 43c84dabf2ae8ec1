"""Chooses how to look at leaves: by BPF where it works, else by polling."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from agentsched.cgroups.bpf.facts import Source
from agentsched.cgroups.bpf.kernel import KernelSource
from agentsched.cgroups.bpf.loading import PROGRAMS
from agentsched.cgroups.bpf.polled import PolledSource
from agentsched.cgroups.contract import HostRefused, SpecRefused

VARIABLE = "AGENTSCHED_SENSING"
WANTED = ("auto", "bpf", "polling")

_log = logging.getLogger(__name__)


def open_source(programs: Sequence[str] = PROGRAMS, wanted: str = "auto") -> Source:
    """The better source that there is, or the one that is wanted (or ``AGENTSCHED_SENSING`` wants). What is
    lost without BPF is said once.

    Raises ``HostRefused`` if BPF is wanted and cannot be had, ``SpecRefused`` for a name not in ``WANTED``.
    """
    wanted = os.environ.get(VARIABLE, "auto") if wanted == "auto" else wanted
    if wanted not in WANTED:
        raise SpecRefused(f"sensing {wanted!r} is not one of {', '.join(WANTED)}")
    if wanted != "polling":
        try:
            return KernelSource(programs)
        except HostRefused as error:
            if wanted == "bpf":
                raise
            _log.warning(
                "no BPF (%s): tool calls are looked at by polling. Lost: %s.",
                error,
                "; ".join(PolledSource.lost),
            )
    return PolledSource()
