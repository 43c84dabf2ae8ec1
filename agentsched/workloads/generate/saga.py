"""SAGA's workloads, from the figures that its paper gives of them.

SAGA ("Workflow-Atomic Scheduling for AI Agent Inference on GPU Clusters", arXiv 2605.00528, evaluation
set-up and its table of tool latencies): SWE-bench agents of 37 steps on average with 2,000 to 4,000 prompt
tokens and 100 to 500 output tokens a step; WebArena agents of 18 steps; a mix of 3 heavy, 4 medium and
3 light tenants; tool times P50 / P95 / P99 in ms: code 180 / 2,400 / 28,000, file 45 / 320 / 1,200, web
850 / 4,500 / 45,000, database 120 / 890 / 3,500.

Choices where it is silent:

* Prompt tokens a step are read as what a step *adds*: total prompts that small would leave no state worth
  keeping between steps. 37 steps then grow to 122,000 tokens on average; a context that would outgrow
  ``window_tokens`` is compacted to a quarter of it, as coding agents do, and starts anew from there.
* Tokens are uniform within the ranges; steps are log-normal with a coefficient of variation of 0.4.
* Coding agents use code and file tools equally often (as recorded agents do), browsing agents web tools.
* Nothing is shared between programs, unless ``shared_tokens`` puts a common head before the first prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from agentsched.workloads.generate.distributions import Quantiles, lognormal
from agentsched.workloads.scripts import Piece, Script, Turn

TOOLS = {
    "code": Quantiles.from_tail(0.180, 2.4, 28.0),
    "file": Quantiles.from_tail(0.045, 0.320, 1.2),
    "web": Quantiles.from_tail(0.850, 4.5, 45.0),
    "database": Quantiles.from_tail(0.120, 0.890, 3.5),
}
"""Seconds that one tool call takes."""

STEPS_CV = 0.4
PROMPT_TOKENS = (2_000, 4_000)
OUTPUT_TOKENS = (100, 500)
WINDOW_TOKENS = 128_000
LEAST_STEPS = 3


@dataclass(frozen=True, slots=True)
class _Kind:
    source: str
    steps: float
    tools: tuple[str, ...]
    window_tokens: int
    shared_tokens: int


def swe(
    programs: int = 100,
    seed: int = 0,
    steps: float = 37.0,
    window_tokens: int = WINDOW_TOKENS,
    shared_tokens: int = 0,
) -> list[Script]:
    """Coding agents on SWE-bench."""
    kind = _Kind("saga-swe", steps, ("code", "file"), window_tokens, shared_tokens)
    return _programs(kind, programs, seed)


def web(
    programs: int = 100,
    seed: int = 0,
    steps: float = 18.0,
    window_tokens: int = WINDOW_TOKENS,
    shared_tokens: int = 0,
) -> list[Script]:
    """Browsing agents on WebArena."""
    return _programs(_Kind("saga-web", steps, ("web",), window_tokens, shared_tokens), programs, seed)


def tenants(programs: int = 100, seed: int = 0, window_tokens: int = WINDOW_TOKENS) -> list[Script]:
    """Three heavy, four medium and three light tenants, in random order.

    Choices: heavy tenants run SWE-bench agents, medium ones WebArena agents, light ones agents of six
    steps on databases; all ten submit equally many programs. Deadlines depend on the engine, so they
    are put on afterwards (``arrivals.with_deadlines``).
    """
    kinds = {
        "heavy": _Kind("saga-heavy", 37.0, ("code", "file"), window_tokens, 0),
        "medium": _Kind("saga-medium", 18.0, ("web",), window_tokens, 0),
        "light": _Kind("saga-light", 6.0, ("database",), window_tokens, 0),
    }
    names = [
        f"{kind}-{number}"
        for kind, many in (("heavy", 3), ("medium", 4), ("light", 3))
        for number in range(many)
    ]
    rng = Random(f"saga-tenants {seed}")
    order = [names[number % len(names)] for number in range(programs)]
    rng.shuffle(order)
    return [
        _program(rng, kinds[tenant.partition("-")[0]], f"saga-{number:05d}", tenant)
        for number, tenant in enumerate(order)
    ]


def _programs(kind: _Kind, programs: int, seed: int) -> list[Script]:
    rng = Random(f"{kind.source} {seed}")
    return [_program(rng, kind, f"{kind.source}-{number:05d}") for number in range(programs)]


def _program(rng: Random, kind: _Kind, name: str, tenant: str = "default") -> Script:
    count = max(LEAST_STEPS, round(lognormal(rng, kind.steps, STEPS_CV * kind.steps)))
    turns: list[Turn] = []
    context = 0
    for index in range(count):
        new, output = rng.randint(*PROMPT_TOKENS), rng.randint(*OUTPUT_TOKENS)
        if index == 0:
            new += kind.shared_tokens
        fresh = context + new + output > kind.window_tokens
        if fresh:
            new, context = kind.window_tokens // 4, 0
        context += new + output
        tool = "" if index == count - 1 else rng.choice(kind.tools)
        gap_s = TOOLS[tool].draw(rng) if tool else 0.0
        turns.append(Turn(new, output, gap_s, tool=tool, fresh=fresh))
    shared = kind.shared_tokens
    prefix = (Piece(f"shared:{kind.source}:{shared}", shared),) if shared else ()
    return Script(name, 0.0, tuple(turns), prefix, tenant=tenant, source=kind.source)
