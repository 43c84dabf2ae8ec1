"""How many tasks an hour fit: KV memory as a knapsack of token-seconds.

``uncontended`` gives each call's seconds by program, from a run in which nothing waits for room. Taken
from each program alone, its shared prefix held already and in the largest chunks that any policy sets,
they are the least that any run takes, and the bounds are bounds. Taken at the largest concurrency that
just fits (a decode step shared by more calls takes longer), ``packing_bound`` is the yardstick of how
well memory is filled; a run with fewer calls at a time, whose calls are shorter, may then exceed it.

Every script counts as a task, those that others start (``Turn.agents``) too.

A running call holds its whole prompt from start to end; the room that its output takes as it comes is
left out, which makes the bounds larger, not wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from agentsched.workloads.bounds.contexts import (
    TurnPath,
    check_fits,
    check_scripts,
    common_tokens,
    seconds_away,
    tokens_of,
    turn_paths,
)
from agentsched.workloads.bounds.sharing import Sharing
from agentsched.workloads.scripts import Script

_WEIGHTS = tuple(step / 100 for step in range(101))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingBound:
    """``token_seconds``: mean of a program's own; ``shared_token_seconds``: of all that is shared,
    over the whole run. ``makespan_s``: the least time for all of them. ``program_s``: the part of it
    that each program's own needs make up, by name."""

    tasks_per_hour: float
    makespan_s: float
    token_seconds: float
    shared_token_seconds: float
    program_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Gap:
    """``reusable`` private tokens wait ``away_s`` for a call with ``prompt`` private tokens;
    ``held`` is the whole private context."""

    reusable: int
    held: int
    prompt: int
    away_s: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What one program needs: private token-seconds of its calls, and its gaps."""

    calls: float
    gaps: tuple[Gap, ...]


def packing_bound(
    scripts: Iterable[Script],
    capacity_tokens: int,
    uncontended: Mapping[str, Sequence[float]],
    *,
    engines: int = 1,
) -> PackingBound:
    """Tasks an hour at most, if every context is kept through every gap; capacity is an engine's.

    Let p(t) be the unshared tokens held at t on all engines, and s_v(t) those of shared run v. Then
    p(t) + sum s_v(t) <= engines x capacity at each t, and over the makespan M the integral of the left
    side is at least P + sum s_v T_v: P, each program's unshared context over its calls and gaps; T_v, the
    time that v is held at least (``Sharing.token_seconds``). So M >= (P + sum s_v T_v) / (engines x
    capacity), and tasks an hour are 3600 N / M. With one prefix of s tokens that all programs share, T
    is P / (capacity - s), and this is engines x (capacity - s) over mean token-seconds.

    Gaps are as long as the script says, and longer where agents that they start live longer. A policy
    that lets go of KV in long gaps may exceed this bound: ``packing_bound_reclaiming`` holds for it.

    Raises ``BoundsError`` for scripts that do not fit, or calls without seconds.
    """
    chosen = check_scripts(scripts, capacity_tokens, engines)
    sharing, demands = _demands(chosen, capacity_tokens, uncontended, in_gaps=True)
    own = {name: d.calls + sum(g.held * g.away_s for g in d.gaps) for name, d in demands.items()}
    shared = sharing.token_seconds(capacity_tokens)
    room = engines * capacity_tokens
    return _bound({name: need / room for name, need in own.items()}, own, shared, shared / room)


def packing_bound_reclaiming(
    scripts: Iterable[Script],
    capacity_tokens: int,
    uncontended: Mapping[str, Sequence[float]],
    *,
    reload_token_s: float,
    reload_work_s: float = 0.0,
    work_s: Mapping[str, float] | None = None,
    engines: int = 1,
) -> PackingBound:
    """Tasks an hour at most, whatever is kept through gaps.

    A token that is let go in a gap costs the next call ``reload_token_s`` at least (prefill, or transfer
    from a host tier), for which it holds its whole prompt longer, and ``reload_work_s`` of the engine's
    computing. ``work_s`` is computing that each program needs in any case.

    Memory: engines x capacity x M >= token-seconds of calls and of shared runs while calls run, and for
    each gap over time g, of n tokens that the next call can use of which x are kept: x g + (n - x) P
    reload_token_s, with P that call's unshared prompt. Computing: engines x M >= work + sum (n - x)
    reload_work_s. Any weighted mean of these two holds also; for a given weight the right side is least
    if each gap keeps all or nothing, whichever costs less. That least value is a bound for every weight,
    and the largest over a grid of weights is taken.

    ``uncontended`` must be of programs alone for this to be a bound. Raises ``BoundsError`` as
    ``packing_bound`` does.
    """
    chosen = check_scripts(scripts, capacity_tokens, engines)
    sharing, demands = _demands(chosen, capacity_tokens, uncontended, in_gaps=False)
    room, work = engines * capacity_tokens, work_s or {}
    shared = sharing.token_seconds(capacity_tokens)

    def cost_of_gap(gap: Gap, weight: float) -> float:
        keeping = weight * gap.away_s / room
        fetching = weight * gap.prompt * reload_token_s / room + (1 - weight) * reload_work_s / engines
        return gap.reusable * min(keeping, fetching)

    def needs(weight: float) -> dict[str, float]:
        return {
            name: weight * demand.calls / room
            + (1 - weight) * work.get(name, 0.0) / engines
            + sum(cost_of_gap(gap, weight) for gap in demand.gaps)
            for name, demand in demands.items()
        }

    weight = _best(lambda weight: weight * shared / room + sum(needs(weight).values()))
    own = {
        name: demand.calls + sum(g.reusable * min(g.away_s, g.prompt * reload_token_s) for g in demand.gaps)
        for name, demand in demands.items()
    }
    return _bound(needs(weight), own, shared, weight * shared / room)


def _best(value: Callable[[float], float]) -> float:
    return max(_WEIGHTS, key=value)


def _bound(
    program_s: dict[str, float], own: Mapping[str, float], shared: float, shared_s: float
) -> PackingBound:
    makespan_s = shared_s + sum(program_s.values())
    return PackingBound(
        tasks_per_hour=3600 * len(program_s) / makespan_s if makespan_s else float("inf"),
        makespan_s=makespan_s,
        token_seconds=sum(own.values()) / len(own),
        shared_token_seconds=shared,
        program_s=program_s,
    )


def _demands(
    scripts: Sequence[Script],
    capacity_tokens: int,
    uncontended: Mapping[str, Sequence[float]],
    *,
    in_gaps: bool,
) -> tuple[Sharing, dict[str, Demand]]:
    """What programs need; ``in_gaps``: shared runs are held through gaps also."""
    away = seconds_away(scripts, uncontended)
    paths = {script.program: turn_paths(script) for script in scripts}
    for program, turns in paths.items():
        check_fits(program, turns, capacity_tokens)
    sharing = Sharing(paths)
    demands: dict[str, Demand] = {}
    for program, turns in paths.items():
        private = [sharing.private_tokens(turn.prompt) for turn in turns]
        calls = 0.0
        for turn, tokens, seconds in zip(turns, private, uncontended[program], strict=True):
            calls += tokens * seconds
            sharing.hold(program, turn.prompt, seconds, tokens * seconds)
        gaps = tuple(_gaps(sharing, turns, private, away[program]))
        if in_gaps:
            for turn, gap in zip(turns, gaps, strict=False):
                sharing.hold(program, turn.context, gap.away_s, gap.held * gap.away_s)
        demands[program] = Demand(calls, gaps)
    return sharing, demands


def _gaps(
    sharing: Sharing, turns: Sequence[TurnPath], private: Sequence[int], away: Sequence[float]
) -> list[Gap]:
    gaps = []
    for (before, after), prompt, away_s in zip(pairwise(turns), private[1:], away, strict=True):
        held = sharing.private_tokens(before.context)
        common = common_tokens(before.context, after.prompt)
        # The common head has all that is shared, up to where the contexts part.
        shared = tokens_of(before.context) - held
        gaps.append(Gap(max(0, common - shared), held, prompt, away_s))
    return gaps
