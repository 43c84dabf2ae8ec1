"""Whose deadline is at stake: neither far off nor lost already.

All is measured in *lives*: what programs of the tenant take from their first seat to their end. They
are learned by tenant, since the agents of tenants differ more than first prompts tell, and from all
tenants together for one of which too few have ended. A program with a deadline

* has a *claim* to be seated before others from ``CLAIM_LIVES`` to ``HOPELESS_LIVES`` before its deadline:
  who cannot make it any more has none, since under overload earliest deadline first would serve only
  those who are late already;
* *presses* in the last ``PRESSING_LIVES`` of that.

What a program has left is its tenant's life less what it has run, and ``LEAST_LEFT_SHARE`` of the life
where it has run for long.
"""

from __future__ import annotations

import math

from agentsched.core.state import Program

CLAIM_LIVES = 10.0
PRESSING_LIVES = 2.5
HOPELESS_LIVES = 0.25
"""Lives differ by factors: giving up at half the mean cost two programs of a hundred that still made it."""

UNKNOWN_LIFE_S, UNKNOWN_LIFE_SHARE = 60.0, 0.2
"""Before any has ended: seconds, or that share of the time to its deadline if it is less."""

FEW_LIVES = 3
LEAST_LEFT_SHARE = 0.25
GAIN = 0.05
MOST_TENANTS = 4096


class _Mean:
    """Of all values at first, of the last twenty or so later."""

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(GAIN, 1.0 / self.count)


class Urgency:
    """Learns lives, and says who has a claim. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._seated_s: dict[str, float] = {}
        self._lives: dict[str, _Mean] = {}
        self._all = _Mean()

    def seated(self, program: Program, now: float) -> None:
        """The program has a seat; its first one begins its life."""
        self._seated_s.setdefault(program.name, now)

    def ended(self, program: Program, now: float) -> None:
        seated_s = self._seated_s.pop(program.name, None)
        if seated_s is None or not program.calls_done:
            return
        mean = self._lives.pop(program.tenant, None) or _Mean()
        self._lives[program.tenant] = mean  # last in order: the tenant heard of longest ago is forgotten
        if len(self._lives) > MOST_TENANTS:
            del self._lives[next(iter(self._lives))]
        mean.add(now - seated_s)
        self._all.add(now - seated_s)

    def claims_from_s(self, program: Program, now: float) -> float:
        """When its claim begins, if it waits until then."""
        return self._lives_before(program, now, CLAIM_LIVES)

    def claims_until_s(self, program: Program, now: float) -> float:
        """When its claim is lost, if it waits until then."""
        return self._lives_before(program, now, HOPELESS_LIVES)

    def presses(self, program: Program, now: float) -> bool:
        """Whether a program that has a claim presses."""
        return now >= self._lives_before(program, now, PRESSING_LIVES)

    def _lives_before(self, program: Program, now: float, lives: float) -> float:
        if program.due_s is None:
            return math.inf
        return program.due_s - lives * self._left_s(program, program.due_s, now)

    def _left_s(self, program: Program, due_s: float, now: float) -> float:
        mean = self._lives.get(program.tenant)
        if mean is None or mean.count < FEW_LIVES:
            mean = self._all
        if not mean.count:
            return min(UNKNOWN_LIFE_S, UNKNOWN_LIFE_SHARE * (due_s - program.opened_s))
        ran_s = now - self._seated_s.get(program.name, now)
        return max(LEAST_LEFT_SHARE * mean.value, mean.value - ran_s)
