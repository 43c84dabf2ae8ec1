"""How long the daemon waits, and lets others wait; a reload changes it under whoever waits already."""

from __future__ import annotations

from dataclasses import dataclass

from agentsched.daemon.settings import Settings


@dataclass(slots=True)
class Patience:
    """Seconds, as ``Settings`` describes them."""

    max_hold_s: float
    retry_grace_s: float
    ping_s: float
    silence_s: float

    @classmethod
    def of(cls, settings: Settings) -> Patience:
        return cls(settings.max_hold_s, settings.retry_grace_s, settings.ping_s, settings.silence_s)

    def take(self, settings: Settings) -> None:
        """What these say from now on."""
        for name in self.__slots__:
            setattr(self, name, getattr(settings, name))
