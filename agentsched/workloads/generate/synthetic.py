"""Coding-agent-like programs from nothing but medians: for tests, and for a first look."""

from __future__ import annotations

from random import Random

from agentsched.workloads.scripts import Script, Turn


def synthetic_scripts(
    seed: int,
    programs: int,
    *,
    calls: int = 11,
    first_tokens: int = 2_000,
    new_tokens: int = 400,
    output_tokens: int = 60,
    gap_s: float = 1.5,
    spread: float = 0.8,
    arrive_every_s: float = 0.0,
) -> list[Script]:
    """Coding-agent-like programs: log-normal gaps and growth about the given medians, seeded."""
    random = Random(seed)
    scripts = []
    for number in range(programs):
        turns = tuple(
            Turn(
                new_tokens=first_tokens
                if index == 0
                else max(1, int(random.lognormvariate(0, spread) * new_tokens)),
                output_tokens=max(1, int(random.lognormvariate(0, 0.5) * output_tokens)),
                gap_s=random.lognormvariate(0, spread) * gap_s,
                tool="bash",
            )
            for index in range(max(1, round(random.gauss(calls, calls / 4))))
        )
        scripts.append(Script(f"p{number:04d}", number * arrive_every_s, turns))
    return scripts
