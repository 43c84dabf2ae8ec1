"""What steps cost one engine, measured quickly on steps like those that a benchmark is about to make.

``agentsched fit`` measures the same at greater length, over all contexts that an engine can have.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from agentsched.engines.cost import CostProfile
from agentsched.engines.execution import Executor
from agentsched.workloads.fit import Bench, Measure, Point, fit_profile, residuals

ROWS = (1, 2, 4, 8)
_CHUNKS = (16, 64, 256)
_TAIL_TOKENS = 32
"""What a row may decode while it is timed."""


@dataclass(frozen=True, slots=True)
class Costs:
    """``mean_error`` is that of the profile on the steps it was fitted to."""

    profile: CostProfile
    mean_error: float


def calibration_tokens(context: int, chunk: int) -> int:
    """KV that ``calibrate`` wants: its rows, and what it prefills beside them."""
    return (max(ROWS) + 2) * (context + 2 * chunk)


def calibrate(
    executor: Executor,
    context: int,
    chunk: int,
    say: Callable[[str], None],
    *,
    rows: Sequence[int] = ROWS,
    rounds: int = 2,
) -> Costs:
    """What steps cost with contexts of up to ``context`` tokens, chunks of ``chunk`` at most, and so many
    ``rows`` that decode at once."""
    bench = Bench(executor)
    contexts = sorted({max(16, tokens) for tokens in (context // 16, context // 3, context - _TAIL_TOKENS)})
    points: list[tuple[Point, Measure]] = [
        (Point(f"prefill of {size}"), partial(Bench.prefill, start=start, chunk=size))
        for size in sorted({min(chunk, size) for size in (*_CHUNKS, chunk)})
        for start in (0, *contexts)
        if start + size < bench.limit_tokens
    ]
    points += [
        (Point(f"decode of {many}"), partial(Bench.decode, rows=many, context=start))
        for many in rows
        for start in contexts
    ]
    for number in range(rounds):
        say(f"costs of {len(points)} kinds of steps, round {number + 1} of {rounds}")
        for row in range(max(rows)):
            bench.hold(row, contexts[-1])
        for point, run in points:
            shape, seconds = run(bench)
            point.shapes.append(shape)
            point.bursts_s.append(seconds)
    measured = [point for point, _ in points]
    # Nothing is moved to host memory here, at whatever speed.
    profile = fit_profile(measured, host_tokens_per_s=CostProfile().host_tokens_per_s)
    errors = [group.mean_error for group in residuals(measured, profile)]
    return Costs(profile, statistics.fmean(errors))
