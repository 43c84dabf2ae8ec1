"""One attached engine as the core knows it. Written by ``state.py`` only."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

UNKNOWN_PREFILL_TOKENS_PER_S = 1_000.0
"""Cautious: KV is held rather longer before anything was measured."""

FEW_PREFILLED_TOKENS = 256
RATES_KEPT = 256


@dataclass(slots=True)
class EngineState:
    """One attached engine, as declared and last reported."""

    name: str
    capacity_tokens: int
    free_tokens: int
    running: int = 0
    queued: int = 0
    prefilled_tokens: int = 0
    recomputed_tokens: int = 0
    busy_s: float = 0.0
    host_tokens: int = 0
    host_tokens_per_s: float = 0.0
    retention: bool = True
    prefill_rates: deque[float] = field(default_factory=lambda: deque(maxlen=RATES_KEPT))
    prefill_tokens_per_s: float = UNKNOWN_PREFILL_TOKENS_PER_S

    @property
    def restore_tokens_per_s(self) -> float:
        """How fast KV that is gone from the device comes back: from host memory, else by prefill."""
        return max(self.prefill_tokens_per_s, self.host_tokens_per_s if self.host_tokens else 0.0)

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """Learn the rate from one report. Steps decode too, so the best one comes closest to it."""
        if tokens >= FEW_PREFILLED_TOKENS and seconds > 0:
            self.prefill_rates.append(tokens / seconds)
            self.prefill_tokens_per_s = max(self.prefill_rates)
