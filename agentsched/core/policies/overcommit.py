"""How far one engine's seats may exceed its KV: found online.

Forecasts are means, so the peaks of programs seldom meet. The factor rises while somebody waits, and falls
with each program paused because contexts outgrew the engine, so that restoring such programs takes a set
share of the engine's time. The sum of n programs' needs strays from its mean by 1 / sqrt(n) of it, so that
is what trust can gain, and what the share follows: ``RELIEF_SHARE`` / sqrt(seats). Sweeps over
recorded and generated agents with 2 to 60 seats found 0.11.

Two things lift it further, even past ``MOST``:

* Programs end at their largest, so that is where the need should come near to the room. If it keeps below
  ``LITTLE_SHARE`` while others wait, the forecasts are wrong beyond what a slow rise can mend. (With what
  is learned, the mean share at endings was 0.76 to 0.94 over recorded and generated agents; 0.6 is
  reached in less than one of twenty.)
* Time in which the engine does not compute while others wait: restoring costs nothing then.
"""

from __future__ import annotations

import math

MOST_AT_ONCE = 5.0
"""Exponent of one rise: time may pass for days without an event."""


class Overcommit:
    """One engine's factor."""

    FIRST, LEAST, MOST = 1.1, 0.8, 2.5
    LIFTED_MOST = 100.0
    BUSY_SHARE = 0.95
    """Engines that have enough to do compute for at least this share of the time."""
    LATE_S = 10.0
    """Reports tell of computing when it is over, so late by so much at most."""
    LITTLE_SHARE = 0.6
    RELIEF_SHARE = 0.11
    GAIN = 0.02
    """Relative change for a second of the engine's time."""

    def __init__(self, waited_s: float) -> None:
        self._factor = self.FIRST
        self._waited_s = waited_s
        self._share = 1.0
        self._busy_s, self._reported_s, self._spare_s = 0.0, waited_s, 0.0

    @property
    def latest(self) -> float:
        """As it was when it was last asked for."""
        return self._factor

    def factor(self, seats: int, waited_s: float, busy_s: float) -> float:
        """With so many seats. For how long, in all, anybody has waited so far, and the engine computed."""
        more_s, self._waited_s = waited_s - self._waited_s, waited_s
        share = self.RELIEF_SHARE / math.sqrt(max(1, seats))
        self._rise(share * more_s, max(self._factor, self.MOST))
        if busy_s != self._busy_s:
            self._reported(waited_s, busy_s)
        return self._factor

    def _reported(self, waited_s: float, busy_s: float) -> None:
        worked_s = (busy_s - self._busy_s) / self.BUSY_SHARE
        spare_s = self._spare_s + (waited_s - self._reported_s) - worked_s
        self._busy_s, self._reported_s = busy_s, waited_s
        if spare_s > 0:
            self._rise(spare_s, self.LIFTED_MOST)
        self._spare_s = min(0.0, max(-self.LATE_S, spare_s))

    def _rise(self, for_s: float, most: float) -> None:
        self._factor = min(most, self._factor * math.exp(min(self.GAIN * for_s, MOST_AT_ONCE)))

    def ended(self, share: float) -> None:
        """A program ended while others waited, and ``share`` of the room was needed until then."""
        self._share += (share - self._share) / 2
        if self._share < self.LITTLE_SHARE:
            lifted = self._factor * min(2.0, self.LITTLE_SHARE / self._share)
            self._factor = min(self.LIFTED_MOST, lifted)

    def outgrown(self, restore_s: float) -> None:
        """A program had to be paused; bringing its KV back takes so long."""
        self._factor = max(self.LEAST, self._factor * math.exp(-self.GAIN * restore_s))
