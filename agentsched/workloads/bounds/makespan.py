"""The least time that a set of programs takes on given engines: to the last end, and on average.

No run is shorter than any of these:

* **Longest.** A program's calls follow each other with its gaps between, each at least as long as
  alone; it begins no sooner than it arrives.
* **Slots.** At most ``concurrency`` programs live at a time: the sum of lives over concurrency.
* **Work.** Every token is prefilled once at least (a shared one once in all), behind what precedes
  it, and each output token but a call's first is a decoded row. Engines do that work at the profile's
  rates, and one step's fixed cost serves a chunk and a batch of rows at most.
* **Memory.** ``packing_bound_reclaiming``, with that work.

**Mean TCT.** When the k-th program ends, k programs have had all that they need: c_k, the sum of the
k smallest needs, over what engines provide, and no less than the k-th shortest life. The sum of TCTs
is the sum of ends less that of arrivals. In a closed loop each later arrival is an end, and only the
last ``concurrency`` ends remain: mean TCT >= sum of the last ``concurrency`` c_k / N. Where agents
start agents their arrivals are not known, and the mean of lives alone is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from agentsched.workloads.bounds.contexts import (
    BoundsError,
    Path,
    Tree,
    TurnPath,
    check_scripts,
    seconds_away,
    tokens_of,
    turn_paths,
    without_last_token,
)
from agentsched.workloads.bounds.packing import packing_bound_reclaiming
from agentsched.workloads.scripts import Script


class Costs(Protocol):
    """Seconds that an engine's step takes, as ``agentsched.engines.cost.CostProfile`` has them."""

    @property
    def step_s(self) -> float: ...

    @property
    def prefill_token_s(self) -> float: ...

    @property
    def decode_row_s(self) -> float: ...

    @property
    def attention_s(self) -> float: ...

    @property
    def context_token_s(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MakespanBound:
    """``makespan_s`` is the largest of ``longest_s`` (one program alone), ``slots_s`` (all of them, so
    many at once), ``work_s`` (computing) and ``memory_s`` (memory and computing by their best mean)."""

    makespan_s: float
    mean_tct_s: float
    longest_s: float
    slots_s: float
    work_s: float
    memory_s: float


@dataclass(frozen=True, slots=True)
class _Work:
    """``seconds`` of rows; ``prefilled`` and ``decoded`` count them."""

    seconds: float
    prefilled: int
    decoded: int


def makespan_bound(
    scripts: Iterable[Script],
    engines: int,
    profile: Costs,
    *,
    capacity_tokens: int,
    uncontended: Mapping[str, Sequence[float]],
    concurrency: int | None = None,
    chunk_tokens: int | None = None,
    max_running: int | None = None,
    reload_token_s: float | None = None,
    reload_work_s: float | None = None,
) -> MakespanBound:
    """Seconds from the first arrival to the last end, and mean TCT, at least.

    ``uncontended``: seconds of each call of each program alone (``packing`` says how). ``capacity_tokens``
    is an engine's. ``concurrency``: a closed loop of so many; None: programs arrive at their own times. A
    step has at most ``chunk_tokens`` of prefill and ``max_running`` decoded rows; None leaves steps out.
    A token let go costs a prefill, or ``reload_token_s`` and ``reload_work_s`` (a host tier).

    Raises ``BoundsError`` as the packing bounds do, and for a closed loop whose scripts arrive late.
    """
    chosen = check_scripts(scripts, capacity_tokens, engines)
    roots = _roots(chosen, concurrency)
    away = seconds_away(chosen, uncontended)
    lives = {name: sum(uncontended[name]) + sum(gaps) for name, gaps in away.items()}
    work = dict(_works({s.program: turn_paths(s) for s in chosen}, chosen, profile))
    prefill_s = profile.prefill_token_s
    packing = packing_bound_reclaiming(
        chosen,
        capacity_tokens,
        uncontended,
        reload_token_s=prefill_s if reload_token_s is None else reload_token_s,
        reload_work_s=prefill_s if reload_work_s is None else reload_work_s,
        work_s={name: w.seconds for name, w in work.items()},
        engines=engines,
    )
    alone = _ends_alone(roots, lives)
    slots_s = sum(lives[s.program] for s in roots) / concurrency if concurrency else 0.0
    steps = _steps(work.values(), chunk_tokens, max_running)
    work_s = (sum(w.seconds for w in work.values()) + steps * profile.step_s) / engines
    needs = [alone, _sums(w.seconds / engines for w in work.values()), _sums(packing.program_s.values())]
    return MakespanBound(
        makespan_s=max(alone[-1], slots_s, work_s, packing.makespan_s),
        mean_tct_s=max(sum(lives.values()) / len(lives), _mean_tct(chosen, needs, concurrency)),
        longest_s=alone[-1],
        slots_s=slots_s,
        work_s=work_s,
        memory_s=packing.makespan_s,
    )


def _roots(scripts: Sequence[Script], concurrency: int | None) -> list[Script]:
    """The scripts that no other starts; they must fit the loop."""
    started = {agent for script in scripts for turn in script.turns for agent in turn.agents}
    roots = [script for script in scripts if script.program not in started]
    if concurrency is not None and concurrency < 1:
        raise BoundsError(f"concurrency must be >= 1, got {concurrency}")
    if late := [script.program for script in roots if script.arrives_s and concurrency is not None]:
        raise BoundsError(f"{late[0]!r} arrives late: in a closed loop each program begins as one ends")
    return roots


def _ends_alone(roots: Sequence[Script], lives: Mapping[str, float]) -> list[float]:
    origin = min(script.arrives_s for script in roots)
    return sorted(script.arrives_s - origin + lives[script.program] for script in roots)


def _sums(needs: Iterable[float]) -> list[float]:
    return list(accumulate(sorted(needs)))


def _mean_tct(scripts: Sequence[Script], needs: Sequence[Sequence[float]], concurrency: int | None) -> float:
    """The mean from the least times of the first end, the second, and so on, by each need."""
    if any(len(times) < len(scripts) for times in needs):
        return 0.0  # some are started by others, no one knows when
    ends: list[float] = [max(at) for at in zip(*needs, strict=True)]
    if concurrency is None:
        origin = min(s.arrives_s for s in scripts)
        return (sum(ends) - sum(s.arrives_s - origin for s in scripts)) / len(scripts)
    return sum(ends[-concurrency:]) / len(scripts)


def _steps(works: Iterable[_Work], chunk_tokens: int | None, max_running: int | None) -> float:
    """How many steps serve all rows at least."""
    listed = list(works)
    prefill = sum(w.prefilled for w in listed) / chunk_tokens if chunk_tokens else 0.0
    decode = sum(w.decoded for w in listed) / max_running if max_running else 0.0
    return max(prefill, decode)


def _works(
    paths: Mapping[str, Sequence[TurnPath]], scripts: Sequence[Script], profile: Costs
) -> Iterator[tuple[str, _Work]]:
    """The least computing for each program; a shared token is the work of the first that has it."""
    seen: Tree[list[int]] = Tree(lambda: [0])
    for script in scripts:
        seconds, prefilled, decoded = 0.0, 0, 0
        for turn, path in zip(script.turns, paths[script.program], strict=True):
            prompt, rows = tokens_of(path.prompt), turn.output_tokens - 1
            new = _new_tokens(seen, path.prompt)
            _new_tokens(seen, without_last_token(path.context))
            pairs = new * (prompt - new) + new * (new + 1) // 2
            read = rows * prompt + rows * (rows + 1) // 2
            seconds += new * profile.prefill_token_s + pairs * profile.attention_s
            seconds += rows * profile.decode_row_s + read * profile.context_token_s
            prefilled += new
            decoded += rows
        yield script.program, _Work(seconds, prefilled, decoded)


def _new_tokens(seen: Tree[list[int]], path: Path) -> int:
    """How many of the context's tokens are new; they are its last. All are seen from now on."""
    new = 0
    for stem, tokens in seen.along(path):
        new += max(0, tokens - stem.notes[0])
        stem.notes[0] = max(tokens, stem.notes[0])
    return new
