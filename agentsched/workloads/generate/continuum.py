"""The two workloads that Continuum was measured on, from the statistics that its paper gives of them.

Continuum ("Efficient and Robust Multi-Turn LLM Agent Scheduling with KV Cache Time-to-Live", 2025), its
table of workloads: turns a program 10.9 +- 2.1 and tool times 925 +- 3,550 ms on SWE-bench agents, with
70,000 tokens; 6.3 turns, 1,923 +- 2,133 ms and 93,000 tokens on the Berkeley function calling benchmark.

Choices where it is silent: tool times are log-normal; the tokens are those of the final context, +- 20 %,
at most 128,000, reached in steps whose sizes vary by 70 %; outputs are log-normal, 300 +- 300 tokens on
SWE-bench and 100 +- 100 for function calls; the spread of the turns of the latter is 2.
"""

from __future__ import annotations

from random import Random

from agentsched.workloads.generate.distributions import gamma, lognormal, whole
from agentsched.workloads.scripts import Script, Turn

FINAL_CV = 0.2
WINDOW_TOKENS = 128_000


def swe(
    programs: int = 100,
    seed: int = 0,
    turns: float = 10.9,
    turns_sd: float = 2.1,
    tool_s: float = 0.925,
    tool_sd_s: float = 3.55,
    final_tokens: int = 70_000,
    output_tokens: float = 300.0,
) -> list[Script]:
    """SWE-bench agents: many short commands, now and then a long one."""
    rng = Random(f"continuum-swe {seed}")
    return [
        _program(
            rng,
            f"continuum-swe-{number:05d}",
            whole(rng, turns, turns_sd, 2),
            (tool_s, tool_sd_s),
            final_tokens,
            output_tokens,
            ("bash", "continuum-swe"),
        )
        for number in range(programs)
    ]


def bfcl(
    programs: int = 100,
    seed: int = 0,
    turns: float = 6.3,
    turns_sd: float = 2.0,
    tool_s: float = 1.923,
    tool_sd_s: float = 2.133,
    final_tokens: int = 93_000,
    output_tokens: float = 100.0,
) -> list[Script]:
    """Function calls, mostly to the web: few turns that each bring much text."""
    rng = Random(f"continuum-bfcl {seed}")
    return [
        _program(
            rng,
            f"continuum-bfcl-{number:05d}",
            whole(rng, turns, turns_sd, 2),
            (tool_s, tool_sd_s),
            final_tokens,
            output_tokens,
            ("web_search", "continuum-bfcl"),
        )
        for number in range(programs)
    ]


def _program(
    rng: Random,
    name: str,
    count: int,
    tool_s: tuple[float, float],
    final_tokens: float,
    output_tokens: float,
    tool_and_source: tuple[str, str],
) -> Script:
    tool, source = tool_and_source
    final_tokens = min(lognormal(rng, final_tokens, FINAL_CV * final_tokens), WINDOW_TOKENS)
    steps = [gamma(rng, 1.0, shape=2.0) for _ in range(count)]
    turns = []
    for index, step in enumerate(steps):
        last = index == count - 1
        grown = round(final_tokens * step / sum(steps))
        output = max(1, min(round(lognormal(rng, output_tokens, output_tokens)), grown // 2))
        gap_s = 0.0 if last else lognormal(rng, *tool_s)
        turns.append(Turn(max(32, grown - output), output, gap_s, tool="" if last else tool))
    return Script(name, 0.0, tuple(turns), source=source)
