"""How much memory tools need at their peak, learned online, for the scheduling core.

Plain values in, a bounded number of steps, deterministic, with a stated prior: as in ``predict``.

A key is a tool, or a tool and the class of its command (``bash:pytest``). What may run beside others is
held against a high quantile of the key's last peaks, for a mean would be exceeded by every second call.
Where a key has fewer than ``FEW`` samples its tool answers, then all tools together, then
``PRIOR_BYTES``. What a program's *next* call will need is asked before its tool is known: a program's own
last peaks tell more than those of others (a repository whose tests take 2 GB takes them again), so the
largest of them counts, filled up with one pooled peak while there are few.
"""

from __future__ import annotations

from collections.abc import Collection

from agentsched.graphs.samples import LARGEST, KeyedWindows, Samples, amount

FEW = 3
"""Below so many samples a source does not stand alone."""

PRIOR_BYTES = 300_000_000
"""About the 0.9 quantile of shell commands of coding agents, each in a container with its agent."""

USUAL_PRIOR_BYTES = 50_000_000
"""About the median of the same, of those that took over a second."""

QUANTILE = 0.9

OWN_PEAKS = 8
"""So many of its last calls tell what a program will need next."""


class MemoryModel:
    """Peak memory of tool calls by key, bytes. Peaks above ``LARGEST`` are learned as that."""

    def __init__(self) -> None:
        self._seen = KeyedWindows()

    def observe(self, tool: str, peak_bytes: int) -> None:
        """Learn the peak of a call that ended by itself. Raises ValueError if it is negative."""
        peak = amount("peak_bytes", min(peak_bytes, LARGEST))
        self._seen.add(tool, peak)

    def dump(self) -> Samples:
        """All that was learned."""
        return self._seen.dump()

    def load(self, known: Samples) -> None:
        """Know that and no more. Raises ValueError on what was never dumped."""
        self._seen.load(known)

    def peak_bytes(self, tool: str, stated: int = 0) -> int:
        """What a call of this key will hardly exceed. ``stated``: what its agent says of it, 0 for nothing;
        that counts where nothing was seen of the key, or less than that, but never for less than was seen."""
        for window in self._seen.of(tool):
            if len(window.ordered) >= FEW:
                return max(stated, int(window.quantile(QUANTILE)))
        if stated or len(self._seen.pooled.ordered) < FEW:
            return stated or PRIOR_BYTES
        return int(self._seen.pooled.quantile(QUANTILE))

    def usual_bytes(self, tool: str, stated: int = 0) -> int:
        """What half of the calls of this key do not exceed, or what its agent says of this one, if that is
        more: for who can take memory back, so that waste costs more than a mistake."""
        for window in (*self._seen.of(tool), self._seen.pooled):
            if len(window.ordered) >= FEW:
                return max(stated, int(window.quantile(0.5)))
        return stated or USUAL_PRIOR_BYTES

    def next_peak_bytes(self, own_peaks: Collection[int]) -> int:
        """What a program will hardly exceed in its next calls, after these peaks of its last ones."""
        own = max(own_peaks, default=0)
        return own if len(own_peaks) >= OWN_PEAKS else max(own, self.peak_bytes(""))
