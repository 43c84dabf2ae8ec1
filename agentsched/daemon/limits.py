"""How often somebody may come: a token bucket. No clock of its own."""

from __future__ import annotations


class Bucket:
    """Holds a minute's worth, and fills evenly; times are monotonic seconds."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self._most = max(1.0, per_minute)
        self._left = self._most
        self._filled_s = now

    def take(self, now: float) -> float:
        """Take one: 0 if there was one, else the seconds until there is, and none was taken."""
        self._left = min(self._most, self._left + (now - self._filled_s) * self.per_minute / 60.0)
        self._filled_s = now
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) * 60.0 / self.per_minute

    def give_back(self) -> None:
        """What was taken was not used."""
        self._left = min(self._most, self._left + 1.0)
