"""What is known of a server from here, made into step reports: of the calls that pass, its metrics, and its
events.

Each says less than the one after it. Calls tell how fast it prefills, and what the contexts sum up to that
are in it; metrics what is free and what is cache; events for whom what is held. Where one is missing, the
one before it stands in its place.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentsched.core.events import Held, StepReport
from agentsched.engines.upstream.kv_ledger import KvLedger
from agentsched.engines.upstream.readings import Reading


class Evidence:
    """``capacity_tokens``: the server's room for KV."""

    def __init__(self, engine: str, capacity_tokens: int) -> None:
        self._engine = engine
        self._capacity_tokens = capacity_tokens
        self._prefilled_tokens = self._decoded_tokens = 0
        self._busy_s = 0.0
        self._running = self._live_tokens = 0
        self._evicted_seen: int | None = None

    @property
    def news(self) -> bool:
        """Whether calls have told anything since the last report."""
        return bool(self._busy_s or self._decoded_tokens)

    def began(self, context_tokens: int) -> None:
        """A call of about so many tokens was sent."""
        self._running += 1
        self._live_tokens += context_tokens

    def over(self, context_tokens: int) -> None:
        """That call ended, one way or another."""
        self._running -= 1
        self._live_tokens -= context_tokens

    def computed(self, *, prefilled_tokens: int, output_tokens: int, prefill_s: float) -> None:
        """What a call took, so far as can be told from here."""
        self._prefilled_tokens += prefilled_tokens
        self._decoded_tokens += output_tokens
        self._busy_s += prefill_s

    def report(
        self, reading: Reading | None, ledger: KvLedger | None, *, snapshot: bool = False
    ) -> StepReport:
        """All that is new since the last report."""
        free_tokens = max(0, self._capacity_tokens - self._live_tokens)
        evictable_tokens, running, queued = 0, self._running, 0
        if reading is not None:
            free_tokens, evictable_tokens = reading.free_tokens, reading.evictable_tokens
            running, queued = reading.running, reading.queued
        if ledger is not None and reading is not None and not evictable_tokens:
            used_tokens = (
                self._capacity_tokens - free_tokens
            )  # by running calls; what is cache, it does not say
            evictable_tokens = min(free_tokens, max(0, ledger.tokens - used_tokens))
            free_tokens -= evictable_tokens
        report = StepReport(
            engine=self._engine,
            free_tokens=free_tokens,
            evictable_tokens=evictable_tokens,
            held=_held(ledger.changes()) if ledger is not None else (),
            snapshot=snapshot,
            evicted_tokens=self._evicted(reading, ledger),
            prefilled_tokens=self._prefilled_tokens,
            decoded_tokens=self._decoded_tokens,
            running=running,
            queued=queued,
            step_s=self._busy_s,
        )
        self._prefilled_tokens = self._decoded_tokens = 0
        self._busy_s = 0.0
        return report

    def _evicted(self, reading: Reading | None, ledger: KvLedger | None) -> int:
        """Since the last report: by its events if it has them, else by its metrics."""
        total = ledger.evicted_tokens if ledger is not None else reading.evicted_tokens if reading else None
        seen, self._evicted_seen = self._evicted_seen, total if total is not None else self._evicted_seen
        return max(0, total - seen) if total is not None and seen is not None else 0


def _held(changes: Iterable[tuple[str, int]]) -> tuple[Held, ...]:
    return tuple(Held(program=program, device_tokens=tokens) for program, tokens in changes if program)
