"""What KV programs with seats need, engine by engine: now, and as far as it is foreseen.

What a program needs now is counted at once. What it will need, and when its gap is not worth its seat any
more, is foreseen at once only while somebody waits, for nobody else asks: until then its entry is stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agentsched.core.forecast import Forecast
from agentsched.core.foresight import Foresight, leaves_at_s
from agentsched.core.ledger import Ledger
from agentsched.core.policies.departures import Departures
from agentsched.core.state import EngineState, Program, State

MOST_CALLS = 1e6


class Needs:
    """The ledgers of all engines. Times are monotonic seconds."""

    def __init__(self, foresight: Foresight) -> None:
        self._foresight = foresight
        self.ledgers: dict[str, Ledger] = {}
        self.outgrown: set[str] = set()
        """Engines in which more is needed than there is room for, as far as anything changed there."""
        self.departures = Departures()
        self._stale: dict[str, Program] = {}
        self._most_tokens = 0
        """KV of the largest engine."""

    @property
    def stale(self) -> bool:
        """Whether anything is not foreseen that has changed."""
        return bool(self._stale)

    def attach(self, engine: EngineState) -> None:
        self.ledgers[engine.name] = Ledger(engine)
        self._measure_engines()

    def lose(self, engine: str) -> None:
        for name in self.ledgers[engine].programs():
            self._stale.pop(name, None)
        del self.ledgers[engine]
        self.outgrown.discard(engine)
        self._measure_engines()

    def count(self, program: Program, engine: str, now: float) -> None:
        """Something about a program has changed that sits there; what it will need is foreseen later."""
        ledger = self.ledgers[engine]
        ledger.count(program, _now_tokens(program), now)
        self._stale[program.name] = program
        if ledger.need_tokens > ledger.room_tokens:
            self.outgrown.add(engine)

    def take_stale(self, state: State) -> Iterator[tuple[Program, str]]:
        """Programs to be ``put`` anew, and where they sit."""
        stale, self._stale = self._stale, {}
        for program in stale.values():
            if program.seat is not None and state.programs.get(program.name) is program:
                yield program, program.seat

    def put(self, state: State, program: Program, engine: str, forecast: Forecast, now: float) -> None:
        """It sits there, and this is what it will need."""
        ledger, leaves_s = self.ledgers[engine], None
        self._stale.pop(program.name, None)
        if program.gap_since_s is not None:
            curve = self._foresight.gap(state, program)
            leaves_s = program.gap_since_s + leaves_at_s(curve, ledger.price())
        ledger.put(program, forecast, leaves_s, now)
        if leaves_s is not None:
            self.departures.expect(leaves_s, engine, program.name, self.ledgers)
        if ledger.need_tokens > ledger.room_tokens:
            self.outgrown.add(engine)

    def drop(self, program: Program, engine: str, now: float) -> None:
        """It sits there no more."""
        self._stale.pop(program.name, None)
        self.ledgers[engine].drop(program, now)

    def forecast(self, state: State, program: Program) -> Forecast:
        """As foreseen, within what can be: what it holds is known, and no engine can hold more than all."""
        foreseen = self._foresight.forecast(state, program)
        now_tokens = _now_tokens(program)
        calls_left = min(max(1.0, foreseen.calls_left), MOST_CALLS)
        growth_tokens = min(foreseen.growth_tokens, max(0, self._most_tokens - now_tokens) / calls_left)
        return Forecast(now_tokens, max(0.0, growth_tokens), calls_left)

    def forecasts(self, state: State, engine: str) -> list[Forecast]:
        """Of who sits there, as of now; who ends last is first."""
        found = [
            self.forecast(state, self._stale[name]) if name in self._stale else forecast
            for name, forecast in self.ledgers[engine].forecasts()
        ]
        return sorted(found, key=lambda forecast: -forecast.calls_left)

    def by_room(self, program: Program, engines: Iterable[str]) -> list[str]:
        """Where its KV may be first, then by room."""

        def place(name: str) -> tuple[bool, float, str]:
            ledger = self.ledgers[name]
            return (name != program.home, ledger.need_tokens / ledger.engine.capacity_tokens, name)

        return sorted(engines, key=place)

    def _measure_engines(self) -> None:
        sizes = (ledger.engine.capacity_tokens for ledger in self.ledgers.values())
        self._most_tokens = max(sizes, default=0)


def _now_tokens(program: Program) -> int:
    """KV that it needs for itself, now."""
    return max(0, program.expected_context_tokens - program.shared_tokens)
