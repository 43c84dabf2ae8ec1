"""Stop strings: end an answer where one of them begins."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until a stop string shows. What may be the beginning of one is kept back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._kept = ""
        self.found: str | None = None

    @property
    def hit(self) -> bool:
        """Whether a stop string is complete."""
        return self.found is not None

    def feed(self, text: str) -> str:
        """What may be passed on now. Sets ``found`` once a stop string is complete."""
        if not self._stops:
            return text
        if self.hit:
            return ""
        text = self._kept + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.found = min(found)
            self._kept = ""
            return text[:at]
        keep = self._possible_beginning(text)
        self._kept = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was kept back for nothing."""
        kept, self._kept = self._kept, ""
        return kept

    def _possible_beginning(self, text: str) -> int:
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
