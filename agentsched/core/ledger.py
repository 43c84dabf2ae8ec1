"""One engine's seats: which programs sit there, what KV they need, and what holding it costs."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise

from agentsched.core.forecast import Forecast, peak_by_ending
from agentsched.core.state import EngineState, Program

ACTIVE_OVER_S = 120.0
LEAST_ACTIVE = 0.05
ALIKE = 1.03


class Ledger:
    """Tokens, as forecast. Programs are put again whenever something about them changes."""

    def __init__(self, engine: EngineState) -> None:
        self.engine = engine
        self.need_tokens = 0
        self.room_tokens = engine.capacity_tokens
        """KV for what programs do not share."""
        self.active_share = 0.5
        """Mean share of the need whose programs are in the engine, not away (over two minutes)."""
        self._tokens: dict[str, int] = {}
        """What each program needs now."""
        self._forecasts: dict[str, Forecast] = {}
        self._endings: list[tuple[float, str, Forecast]] = []
        """(-calls left, program, forecast), ascending: who ends last is first."""
        self._shared_by: dict[str, int] = {}
        self._shared: Counter[int] = Counter()
        self._away: dict[str, int] = {}
        self._away_tokens = 0
        self._now: float | None = None
        self._leaves_s: dict[str, float] = {}
        self._left: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, program: Program) -> bool:
        return program.name in self._tokens

    def _make_room(self) -> None:
        """Anew, since other amounts are shared now.

        Who found nearly as much as another in place is taken to have found the same, others to have
        found something else. Where that would fill half of the KV, many amounts have to be parts of
        each other.
        """
        capacity = self.engine.capacity_tokens
        amounts = sorted(self._shared)
        largest = amounts[-1] if amounts else 0
        apart = largest + sum(amount for amount, larger in pairwise(amounts) if larger > ALIKE * amount)
        shared = min(apart, max(capacity // 2, largest))
        self.room_tokens = max(1, capacity - shared)

    def put(self, program: Program, forecast: Forecast, leaves_s: float | None, now: float) -> None:
        """Seat the program, or renew its entry. ``leaves_s``: when its gap is not worth holding KV for
        any more, monotonic seconds; None if it is not in a gap."""
        self._settle(now)
        name, tokens = program.name, forecast.now_tokens
        self._take_out(name)
        self._tokens[name] = tokens
        self._forecasts[name] = forecast
        insort(self._endings, (-forecast.calls_left, name, forecast))
        self.need_tokens += tokens
        self._share(name, program.shared_tokens)
        if leaves_s is not None:
            self._away[name] = tokens
            self._away_tokens += tokens
            self._leaves_s[name] = leaves_s

    def count(self, program: Program, tokens: int, now: float) -> None:
        """What a program that sits here needs now. Who asks for a peak, or who leaves, has to ``put`` it
        before."""
        self._settle(now)
        name = program.name
        self.need_tokens += tokens - self._tokens[name]
        self._tokens[name] = tokens
        if self._shared_by[name] != program.shared_tokens:
            self._share(name, program.shared_tokens)
        self._away_tokens -= self._away.pop(name, 0)
        if name in self._leaves_s:
            del self._leaves_s[name]
            self._left.pop(name, None)
        if program.gap_since_s is not None:
            self._away[name] = tokens
            self._away_tokens += tokens

    def drop(self, program: Program, now: float) -> None:
        """The program has no seat here any more, if it had one."""
        self._settle(now)
        if self._take_out(program.name):
            self._share(program.name, None)

    def _take_out(self, name: str) -> bool:
        """Its entry, but for what it shares. False if it has none."""
        forecast = self._forecasts.pop(name, None)
        if forecast is None:
            return False
        del self._endings[bisect_left(self._endings, (-forecast.calls_left, name))]
        self.need_tokens -= self._tokens.pop(name)
        self._away_tokens -= self._away.pop(name, 0)
        self._leaves_s.pop(name, None)
        self._left.pop(name, None)
        return True

    def _share(self, name: str, tokens: int | None) -> None:
        """The program shares so many tokens; None: it is not here any more."""
        before = self._shared_by.pop(name, None) if tokens is None else self._shared_by.get(name)
        if before == tokens:
            return
        if before is not None:
            self._shared[before] -= 1
            if not self._shared[before]:
                del self._shared[before]
        if tokens is not None:
            self._shared_by[name] = tokens
            self._shared[tokens] += 1
        self._make_room()

    def _settle(self, now: float) -> None:
        """Learn the share that held until now."""
        before, self._now = self._now, now
        if before is not None and self.need_tokens > 0 and now > before:
            share = 1.0 - self._away_tokens / self.need_tokens
            self.active_share += (share - self.active_share) * min(1.0, (now - before) / ACTIVE_OVER_S)

    def leave(self, name: str, leaves_s: float) -> bool:
        """It is ``leaves_s``. False if the program's gap is another one by now, or over."""
        if not self.leaves(name, leaves_s):
            return False
        self._left[name] = None
        return True

    def leaves(self, name: str, leaves_s: float) -> bool:
        """Whether the program is in that gap still."""
        return self._leaves_s.get(name) == leaves_s

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
        return self.need_tokens + forecast.now_tokens - sum(self._tokens[name] for name in without)

    def peak_with(self, forecast: Forecast, without: set[str]) -> float:
        """The predicted peak, with one more program and without some."""
        endings = self._endings
        if without:
            endings = [ending for ending in endings if ending[1] not in without]
        at = bisect_left(endings, (-forecast.calls_left,))
        return peak_by_ending(
            chain((f for _, _, f in endings[:at]), (forecast,), (f for _, _, f in endings[at:]))
        )

    def forecasts(self) -> Iterator[tuple[str, Forecast]]:
        """Of who sits here, by name, as they were ``put``; who ends last first."""
        return ((name, forecast) for _, name, forecast in self._endings)

    def programs(self) -> Iterator[str]:
        """Who sits here."""
        return iter(self._tokens)

    def check_invariants(self) -> None:
        """Raises AssertionError if the books disagree."""
        assert self.need_tokens == sum(self._tokens.values()), "tokens needed are miscounted"
        assert self._tokens.keys() == self._forecasts.keys(), "programs and forecasts disagree"
        assert self._away_tokens == sum(self._away.values()), "tokens away are miscounted"
        assert sum(self._shared.values()) == len(self._tokens), "shares are miscounted"

    def tokens_of(self, program: Program) -> int:
        return self._tokens[program.name]
