"""When KV comes up from host memory, and what that costs beside computing it again.

A call that starts finds a prefix of its context on the device and the next part in host memory. That part
comes up as a whole or is computed again as a whole: a token costs as much to bring up wherever it stands,
and more to compute the later it stands, so a mixture is never the cheapest. What is compared is delay:
bringing up holds up the call itself, computing again holds up all calls that run as well. Most often
bringing up wins by far; it loses where the link is busy with much else, or the model is very small.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from agentsched.engines.host_tier import HostTier
from agentsched.engines.kv import KvCache

PREFILLS_REMEMBERED = 64
LEAST_PREFILL_TOKENS = 32
"""Fewer in a step tell of the step's fixed costs, not of tokens."""


class Promotion:
    """Hands the cache's moves to the host tier, and tells the cache what has come. ``tier`` may be None."""

    def __init__(self, kv: KvCache, tier: HostTier | None) -> None:
        self._kv = kv
        self._tier = tier
        self._prefill_token_s: deque[float] = deque(maxlen=PREFILLS_REMEMBERED)

    @property
    def on_the_way(self) -> bool:
        """Whether anything has yet to come up."""
        return self._kv.transit.begun > self._kv.transit.arrived

    def settle(self, now: float) -> None:
        """Take note of what has come up."""
        if self._tier is not None:
            self._kv.settle(self._tier.promoted(now))

    def observe(self, prefilled_tokens: int, seconds: float) -> None:
        """A step has been computed. Steps decode too, so the fastest come closest to what a token costs."""
        if prefilled_tokens >= LEAST_PREFILL_TOKENS:
            self._prefill_token_s.append(seconds / prefilled_tokens)

    def pays(self, blocks: int, running: int, now: float) -> bool:
        """Whether so many blocks had better come up than be computed again; yes until that is known."""
        if self._tier is None or not self._prefill_token_s:
            return True
        recompute_s = blocks * self._kv.block_tokens * min(self._prefill_token_s)
        return self._tier.load_s(blocks, now) < recompute_s * (1 + running)

    def carry_out(self, now: float) -> None:
        """Begin the moves that the cache has decided."""
        if self._tier is None:
            return
        demotions, promotions = self._kv.transit.take_moves()
        if demotions:
            self._tier.demote(demotions)
        if promotions:
            self._tier.promote(promotions, now)

    def make_way(self, written: Iterable[Sequence[int]]) -> None:
        """The next step writes these blocks."""
        if self._tier is not None:
            self._tier.make_way(block for blocks in written for block in blocks)

    def wait(self, now: float) -> float:
        """Nothing can be computed until more has come; how long that took."""
        assert self._tier is not None, "nothing is on its way where there is no host tier"
        return self._tier.wait(now)
