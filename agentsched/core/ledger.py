"""One engine's seats: which programs sit there, what KV they need, and what holding it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from agentsched.core.forecast import Forecast, predicted_peak
from agentsched.core.state import EngineState, Program

ACTIVE_OVER_S = 120.0
LEAST_ACTIVE = 0.05


class Ledger:
    """Tokens, as forecast. Programs are put again whenever something about them changes."""

    def __init__(self, engine: EngineState) -> None:
        self.engine = engine
        self.need_tokens = 0
        self.active_share = 0.5
        """Mean share of the need whose programs are in the engine, not away (over two minutes)."""
        self._forecasts: dict[str, Forecast] = {}
        self._shared_by: dict[str, int] = {}
        self._shared: Counter[int] = Counter()
        self._away: dict[str, int] = {}
        self._away_tokens = 0
        self._now: float | None = None
        self._leaves_s: dict[str, float] = {}
        self._left: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._forecasts)

    @property
    def room_tokens(self) -> int:
        """KV for what programs do not share. Programs that found the same amount of their first prompt
        in place are taken to share it."""
        return self.engine.capacity_tokens - sum(self._shared)

    def put(self, program: Program, forecast: Forecast, leaves_s: float | None, now: float) -> None:
        """Seat the program, or renew its entry. ``leaves_s``: when its gap is not worth holding KV for
        any more, monotonic seconds; None if it is not in a gap."""
        self.drop(program, now)
        name, tokens = program.name, forecast.now_tokens
        self._forecasts[name] = forecast
        self.need_tokens += tokens
        self._shared_by[name] = program.shared_tokens
        self._shared[program.shared_tokens] += 1
        if leaves_s is not None:
            self._away[name] = tokens
            self._away_tokens += tokens
            self._leaves_s[name] = leaves_s

    def drop(self, program: Program, now: float) -> None:
        """The program has no seat here any more, if it had one."""
        self._settle(now)
        name = program.name
        forecast = self._forecasts.pop(name, None)
        if forecast is None:
            return
        self.need_tokens -= forecast.now_tokens
        self._away_tokens -= self._away.pop(name, 0)
        self._leaves_s.pop(name, None)
        self._left.pop(name, None)
        shared = self._shared_by.pop(name)
        self._shared[shared] -= 1
        if not self._shared[shared]:
            del self._shared[shared]

    def _settle(self, now: float) -> None:
        """Learn the share that held until now."""
        if self._now is not None and self.need_tokens > 0:
            share = 1.0 - self._away_tokens / self.need_tokens
            passed_s = now - self._now
            self.active_share += (share - self.active_share) * min(1.0, passed_s / ACTIVE_OVER_S)
        self._now = now

    def leave(self, name: str, leaves_s: float) -> bool:
        """It is ``leaves_s``. False if the program's gap is another one by now, or over."""
        if self._leaves_s.get(name) != leaves_s:
            return False
        self._left[name] = None
        return True

    def leavers(self) -> Iterator[str]:
        """Programs whose gaps are not worth their KV any more, longest since first."""
        return iter(self._left)

    def price(self) -> float:
        """What a second of one token's KV has to save, in seconds of return a second: 1/s.

        Prefilling a token again keeps the engine for ``1 / prefill rate`` seconds, in which the KV of
        all programs that are in the engine stands still. So holding pays while the rate of return
        (``foresight.gap_index``) is above 1 / (seconds a token x KV that stands still).
        """
        stands_still = self.engine.capacity_tokens * max(LEAST_ACTIVE, self.active_share)
        return self.engine.restore_tokens_per_s / stands_still

    def need_with(self, forecast: Forecast, without: set[str]) -> float:
        """Tokens needed now, with one more program and without some."""
        return self.need_tokens + forecast.now_tokens - sum(self._forecasts[n].now_tokens for n in without)

    def peak_with(self, forecast: Forecast, without: set[str]) -> float:
        """The predicted peak, with one more program and without some."""
        stay = [f for name, f in self._forecasts.items() if name not in without]
        return predicted_peak([*stay, forecast])

    def programs(self) -> Iterator[str]:
        """Who sits here."""
        return iter(self._forecasts)

    def check_invariants(self) -> None:
        """Raises AssertionError if the books disagree."""
        tokens = sum(forecast.now_tokens for forecast in self._forecasts.values())
        assert self.need_tokens == tokens, "tokens needed are miscounted"
        assert self._away_tokens == sum(self._away.values()), "tokens away are miscounted"
        assert sum(self._shared.values()) == len(self._forecasts), "shares are miscounted"

    def tokens_of(self, program: Program) -> int:
        return self._forecasts[program.name].now_tokens
