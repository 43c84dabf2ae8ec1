"""A workload without contention: what programs take alone, and what they hold when memory is no limit.

All of it is measured on one simulated engine with room for everything, under ``fcfs-lru`` (which decides
nothing there), and kept in the workload's ``memo``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.core.log import Entry
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.cost import CostProfile
from agentsched.workloads.arrivals import HOUR_S
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.fit import load_profile
from agentsched.workloads.meter import steady_span
from agentsched.workloads.scripts import Piece, Script, Turn
from agentsched.workloads.simulator import Simulation
from agentsched.workloads.workload import Cast, Workload, drawn_programs

ROOM_TOKENS = 10**9
MIN_PROGRAMS = 150
PROGRAMS_A_PLACE = 6
"""Programs of an occupancy run for each that lives at once, so that ramp and drain are short."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How an engine computes: a cost profile, or the name or file of one, and the limits of its batches."""

    profile: str | CostProfile
    chunk_tokens: int = 2048
    max_running: int = 256

    def engine(self, kv_tokens: int, *, name: str = "e0", host_tokens: int = 0) -> AnalyticEngine:
        return AnalyticEngine(
            load_profile(self.profile) if isinstance(self.profile, str) else self.profile,
            kv_tokens,
            name=name,
            host_tokens=host_tokens,
            chunk_tokens=self.chunk_tokens,
            max_running=self.max_running,
        )


@dataclass(frozen=True, slots=True)
class Occupancy:
    """A closed loop of ``concurrency`` programs on one engine with room for everything.

    ``own_tokens``: mean of the live programs' summed contexts without what they share, in the steady part
    of the run; ``shared_tokens``: of the shared prefixes of live programs, each counted once.
    ``token_seconds``: a program's own context integrated over its life, its sub-agents' included, mean
    over programs.
    """

    concurrency: int
    own_tokens: float
    shared_tokens: float
    token_seconds: float

    @property
    def tokens(self) -> float:
        return self.own_tokens + self.shared_tokens


@dataclass(frozen=True, slots=True)
class Yardstick:
    """How many tasks an hour fit one engine: capacity over what a program needs, at ``at``.

    ``at`` is the largest closed loop whose contexts just fit. Its programs share batches, so their lives
    are longer than alone: a policy that runs fewer at once, or lets go of KV in gaps, may exceed this.
    What never is exceeded is ``bounds.packing_bound_reclaiming``.
    """

    tasks_per_hour: float
    at: Occupancy


def alone_s(workload: Workload, serving: Serving) -> dict[str, float]:
    """TCT of each root program alone on an idle engine that holds its shared prefix already, seconds."""
    key = ("alone", serving)
    if key not in workload.memo:
        workload.memo[key] = _alone_s(workload, serving)
    times = workload.memo[key]
    assert isinstance(times, dict)
    return times


def _alone_s(workload: Workload, serving: Serving) -> dict[str, float]:
    roots = {script.program: replace(script, arrives_s=0.0) for script in workload.roots()}
    agents = {script.program: script for script in workload.scripts if script.program not in roots}
    prefixes = dict.fromkeys(script.prefix for script in workload.scripts if script.prefix)
    warming = [
        Script(f"warming/{number}", 0.0, (Turn(sum(piece.tokens for piece in prefix) + 16, 1, 0.0),), prefix)
        for number, prefix in enumerate(prefixes)
    ]
    arrived: dict[str, float] = {}
    callers: dict[str, str] = {}
    times: dict[str, float] = {}

    def note(entry: Entry) -> None:
        match entry.event:
            case ev.CallArrived(call=call, program=program) if program in roots:
                arrived.setdefault(program, entry.now)
                callers[call] = program
            case ev.CallFinished(call=call) if call in callers:
                program = callers.pop(call)
                times[program] = entry.now - arrived[program]
            case _:
                pass

    _run(serving, [*warming, *roots.values()], agents, 1, note)
    return times


def occupancy(workload: Workload, serving: Serving, concurrency: int, seed: int = 0) -> Occupancy:
    """Measure it, in a run of programs drawn with ``seed``."""
    key = ("occupancy", serving, concurrency, seed)
    if key not in workload.memo:
        cast, programs = drawn_programs(workload, seed)
        chosen = islice(programs, max(MIN_PROGRAMS, PROGRAMS_A_PLACE * concurrency))
        contexts = _Contexts(cast, concurrency)
        _run(serving, chosen, cast.agents, concurrency, contexts.take)
        workload.memo[key] = contexts.occupancy()
    measured = workload.memo[key]
    assert isinstance(measured, Occupancy)
    return measured


def _run(
    serving: Serving,
    scripts: Iterable[Script],
    agents: dict[str, Script],
    concurrency: int,
    log: Callable[[Entry], None],
) -> None:
    """A closed loop of the scripts, in their order, on one engine with room for everything."""
    coming = iter(scripts)
    Simulation(
        Core(make_policy("fcfs-lru")),
        [serving.engine(ROOM_TOKENS)],
        list(islice(coming, concurrency)),
        Conditions(concurrency=concurrency),
        agents=agents,
        then=coming,
        log=log,
    ).run()


class _Contexts:
    """Summed contexts of live programs over time, from a log as it is written."""

    def __init__(self, cast: Cast, concurrency: int) -> None:
        self._cast, self._concurrency = cast, concurrency
        self._now = 0.0
        self._own: dict[str, int] = {}
        self._callers: dict[str, str] = {}
        self._holders: Counter[tuple[Piece, ...]] = Counter()
        self._own_tokens = self._shared_tokens = 0
        self._own_area = self._shared_area = 0.0
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._areas: dict[float, tuple[float, float]] = {}

    def take(self, entry: Entry) -> None:
        match entry.event:
            case ev.CallArrived(call=call, program=program):
                self._pass(entry.now)
                self._callers[call] = program
                if program not in self._own:
                    self._begin(program)
                self._set(program, entry.event.prompt_tokens - self._script(program).prefix_tokens)
            case ev.CallFinished(call=call):
                self._pass(entry.now)
                program = self._callers.pop(call)
                self._set(program, self._own[program] + entry.event.output_tokens)
            case ev.ProgramClosed(program=program):
                self._pass(entry.now)
                self._end(program)
            case _:
                pass

    def occupancy(self) -> Occupancy:
        span = steady_span(self._starts, self._ends, self._concurrency)
        begin_s, end_s = span or (0.0, self._now)
        own, shared = (
            (after - before) / (end_s - begin_s)
            for before, after in zip(self._areas.get(begin_s, (0.0, 0.0)), self._areas[end_s], strict=True)
        )
        return Occupancy(self._concurrency, own, shared, self._own_area / len(self._starts))

    def _script(self, program: str) -> Script:
        return self._cast.script(program)[0]

    def _pass(self, now: float) -> None:
        self._own_area += self._own_tokens * (now - self._now)
        self._shared_area += self._shared_tokens * (now - self._now)
        self._now = now

    def _set(self, program: str, tokens: int) -> None:
        self._own_tokens += tokens - self._own[program]
        self._own[program] = tokens

    def _begin(self, program: str) -> None:
        self._own[program] = 0
        self._hold(program, 1)
        if program in self._cast.roots:
            self._starts.append(self._now)
            self._areas[self._now] = (self._own_area, self._shared_area)

    def _end(self, program: str) -> None:
        self._set(program, 0)
        del self._own[program]
        self._hold(program, -1)
        if program in self._cast.roots:
            self._ends.append(self._now)
            self._areas[self._now] = (self._own_area, self._shared_area)

    def _hold(self, program: str, change: int) -> None:
        """Of a shared prefix the first holder brings it and the last one takes it away."""
        script = self._script(program)
        before = self._holders[script.prefix]
        self._holders[script.prefix] = before + change
        self._shared_tokens += script.prefix_tokens * (bool(before + change) - bool(before))


def yardstick(workload: Workload, serving: Serving, kv_tokens: int) -> Yardstick:
    """The packing bound at the largest concurrency whose contexts just fit into an engine's KV."""
    key = ("yardstick", serving, kv_tokens)
    if key not in workload.memo:
        most = concurrency_for(workload, serving, kv_tokens)
        measured = occupancy(workload, serving, most)
        room = kv_tokens - measured.shared_tokens
        workload.memo[key] = Yardstick(HOUR_S * max(0.0, room) / measured.token_seconds, measured)
    found = workload.memo[key]
    assert isinstance(found, Yardstick)
    return found


def concurrency_for(workload: Workload, serving: Serving, tokens: float) -> int:
    """The largest closed loop, of 1 at least, whose mean summed contexts are at most ``tokens``.

    Contexts grow nearly in proportion, so a step by proportion finds a near bracket, and halving the rest.
    """
    fits, fails, guess = 0, 0, 1
    while fails - fits != 1:
        measured = occupancy(workload, serving, guess)
        if measured.tokens <= tokens:
            fits = guess
        else:
            fails = guess
        if fails:
            guess = (fits + fails) // 2 if fits else min(fails - 1, int(guess * tokens / measured.tokens))
        else:
            guess = max(fits + 1, int(guess * tokens / measured.tokens))
        guess = max(1, guess)
        if fails == 1:
            return 1
    return fits
