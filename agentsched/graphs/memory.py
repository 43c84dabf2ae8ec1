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

from agentsched.graphs.samples import LARGEST, Samples, Window, amount, keys_of

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

    SAMPLES_PER_TOOL = 100
    SAMPLES_POOLED = 200
    MAX_TOOLS = 1024
    """Past this, the key seen least recently is forgotten: names come from outside."""

    def __init__(self) -> None:
        self._by_tool: dict[str, Window] = {}
        self._pooled = Window(self.SAMPLES_POOLED)

    def observe(self, tool: str, peak_bytes: int) -> None:
        """Learn the peak of a call that ended by itself. Raises ValueError if it is negative."""
        peak = amount("peak_bytes", min(peak_bytes, LARGEST))
        for key in keys_of(tool):
            window = self._by_tool.pop(key, None) or Window(self.SAMPLES_PER_TOOL)
            if len(self._by_tool) >= self.MAX_TOOLS:
                del self._by_tool[next(iter(self._by_tool))]
            self._by_tool[key] = window
            window.add(peak)
        self._pooled.add(peak)

    def dump(self) -> Samples:
        """All that was learned."""
        return Samples.of(self._by_tool, self._pooled)

    def load(self, known: Samples) -> None:
        """Know that and no more. Raises ValueError on what was never dumped."""
        pooled = Window.loaded(self.SAMPLES_POOLED, known.pooled)
        self._by_tool = {
            key: Window.loaded(self.SAMPLES_PER_TOOL, values)
            for key, values in list(known.by_key.items())[-self.MAX_TOOLS :]
        }
        self._pooled = pooled

    def peak_bytes(self, tool: str, stated: int = 0) -> int:
        """What a call of this key will hardly exceed. ``stated``: what its agent says of it, 0 for nothing;
        that counts where nothing was seen of the key, or less than that, but never for less than was seen."""
        windows = [window for key in keys_of(tool) if (window := self._by_tool.get(key)) is not None]
        for window in windows:
            if len(window.ordered) >= FEW:
                return max(stated, int(window.quantile(QUANTILE)))
        if stated or len(self._pooled.ordered) < FEW:
            return stated or PRIOR_BYTES
        return int(self._pooled.quantile(QUANTILE))

    def usual_bytes(self, tool: str, stated: int = 0) -> int:
        """What half of the calls of this key do not exceed, or what its agent says of this one, if that is
        more: for who can take memory back, so that waste costs more than a mistake."""
        windows = [window for key in keys_of(tool) if (window := self._by_tool.get(key)) is not None]
        for window in (*windows, self._pooled):
            if len(window.ordered) >= FEW:
                return max(stated, int(window.quantile(0.5)))
        return stated or USUAL_PRIOR_BYTES

    def next_peak_bytes(self, own_peaks: Collection[int]) -> int:
        """What a program will hardly exceed in its next calls, after these peaks of its last ones."""
        own = max(own_peaks, default=0)
        return own if len(own_peaks) >= OWN_PEAKS else max(own, self.peak_bytes(""))
