"""When programs arrive: open arrivals by a rate, closed loops, and scripts that are given such times.

All times are seconds from the start, rising; rates are programs an hour; the same seed gives the same times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from random import Random

from agentsched.workloads.scripts import Script
from agentsched.workloads.selection import roots

HOUR_S = 3600.0
BURN_IN = 100
"""Mean intervals before the start, so that a bursty process is not caught at the head of a burst."""

OFFICE_DAY = (
    *(0.5, 0.35, 0.25, 0.2, 0.2, 0.25, 0.4, 0.7, 1.1, 1.5, 1.7, 1.6),
    *(1.4, 1.5, 1.75, 1.8, 1.75, 1.6, 1.35, 1.2, 1.1, 1.0, 0.85, 0.65),
)
"""Weight of each hour from midnight on."""


def closed(count: int, stagger_s: float = 0.0) -> list[float]:
    """All at once, or one every ``stagger_s``; whoever plays them bounds how many run."""
    return [number * stagger_s for number in range(count)]


def poisson(rate: float, hours: float, seed: int) -> list[float]:
    """Independent arrivals."""
    return gamma(rate, hours, seed, cv=1.0)


def gamma(rate: float, hours: float, seed: int, cv: float) -> list[float]:
    """A renewal process whose intervals are gamma distributed with this coefficient of variation.

    1 is Poisson; above 1 arrivals come in bursts, below 1 they are more even.
    """
    _check(rate, hours, cv)
    return [arrival / rate * HOUR_S for arrival in _unit_renewals(rate * hours, seed, cv)]


def day(
    rate: float, hours: float, seed: int, cv: float = 2.0, profile: Sequence[float] = OFFICE_DAY
) -> list[float]:
    """Days in the manner of BurstGPT, from midnight on; ``rate`` is the mean over a whole day.

    BurstGPT (Wang et al., arXiv 2401.17644, sections on concurrency) found in months of requests to a
    hosted model a daily cycle of working hours and, within it, gamma distributed intervals that are
    burstier than Poisson. It gives both as plots; the hourly weights of ``OFFICE_DAY`` and a coefficient
    of variation of 2 are this module's reading of them. Bursts are those of ``gamma`` in a time that
    runs as fast as the hour's weight says.
    """
    _check(rate, hours, cv)
    if len(profile) != 24 or min(profile) <= 0:
        raise ValueError(f"a day's profile is 24 positive weights, got {len(profile)}: {profile}")
    scale = rate * 24 / sum(profile)
    weights = [profile[hour % 24] * scale for hour in range(int(hours) + 1)]
    passed = [0.0, *accumulate(weights)]
    total = passed[int(hours)] + weights[int(hours)] * (hours % 1)
    times, hour = [], 0
    for arrival in _unit_renewals(total, seed, cv):
        while arrival >= passed[hour + 1]:
            hour += 1
        times.append((hour + (arrival - passed[hour]) / weights[hour]) * HOUR_S)
    return times


def with_arrivals(scripts: Sequence[Script], times: Sequence[float]) -> list[Script]:
    """The same programs, the n-th root arriving at the n-th time. Sub-agents arrive with their parents.

    Raises ``ValueError`` if there are fewer times than root programs.
    """
    names = [script.program for script in roots(scripts)]
    if len(times) < len(names):
        raise ValueError(f"{len(names)} programs need as many arrival times, got {len(times)}")
    arrives_s = dict(zip(names, times, strict=False))
    return [
        replace(script, arrives_s=arrives_s[script.program]) if script.program in arrives_s else script
        for script in scripts
    ]


def with_deadlines(
    scripts: Sequence[Script], uncontended_s: Mapping[str, float], factor: float
) -> list[Script]:
    """The same programs, each to end within ``factor`` times what it takes alone, by its name.

    Programs that ``uncontended_s`` does not name (sub-agents) have no deadline.
    """
    return [
        replace(script, deadline_s=factor * uncontended_s[script.program])
        if script.program in uncontended_s
        else script
        for script in scripts
    ]


def _check(rate: float, hours: float, cv: float) -> None:
    for name, value in (("rate", rate), ("hours", hours), ("cv", cv)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _unit_renewals(until: float, seed: int, cv: float) -> list[float]:
    """Arrivals of mean rate 1 in [0, until)."""
    rng = Random(f"arrivals {seed}")
    shape = cv**-2
    now, times = -float(BURN_IN), []
    while (now := now + rng.gammavariate(shape, 1 / shape)) < until:
        if now >= 0:
            times.append(now)
    return times
