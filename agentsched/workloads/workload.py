"""The programs of a simulation: what its traces hold and the engine can hold, and draws from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random

from agentsched.workloads.scripts import Script
from agentsched.workloads.selection import drawing, family, roots
from agentsched.workloads.traces import TraceError, load


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Scripts of root programs and of the sub-agents that they start; of each, its whole family fits.

    ``left_out`` counts the programs that are not there, by reason. ``memo`` keeps what was worked out
    from the workload (``uncontended.py``), which costs seconds and is asked for by every run.
    """

    scripts: tuple[Script, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    memo: dict[object, object] = field(default_factory=dict, repr=False)

    def roots(self) -> list[Script]:
        return roots(self.scripts)

    def tenants(self) -> list[str]:
        """In the order of their first program."""
        return list(dict.fromkeys(script.tenant for script in self.scripts))


@dataclass(slots=True)
class Cast:
    """The programs of one run by name, growing as they are drawn. All arrive at 0."""

    roots: dict[str, Script] = field(default_factory=dict)
    agents: dict[str, Script] = field(default_factory=dict)
    drawn: bool = False

    def add(self, members: Sequence[Script]) -> Script:
        """Take a root program, the first of ``members``, and its sub-agents."""
        root = replace(members[0], arrives_s=0.0)
        self.roots[root.program] = root
        self.agents.update((member.program, member) for member in members[1:])
        return root

    def script(self, program: str) -> tuple[Script, bool]:
        """The program's script, and whether it is a root."""
        root = self.roots.get(program)
        return (self.agents[program], False) if root is None else (root, True)

    def original(self, program: str) -> str:
        """The name, in the workload, of what ``program`` is a copy of."""
        return program.partition("-")[2] if self.drawn else program


def every_program_once(workload: Workload, seed: int) -> tuple[Cast, list[Script]]:
    """All root programs in seeded order."""
    cast, by_name = Cast(), {script.program: script for script in workload.scripts}
    chosen = workload.roots()
    Random(seed).shuffle(chosen)
    return cast, [cast.add(family(root, by_name)) for root in chosen]


def drawn_programs(workload: Workload, seed: int) -> tuple[Cast, Iterator[Script]]:
    """Root programs drawn with replacement, without end; the cast grows with each that is taken."""
    cast = Cast(drawn=True)
    return cast, (cast.add(members) for members in drawing(workload.scripts, seed))


@lru_cache(maxsize=8)
def load_workload(
    traces: tuple[str, ...], *, kv_tokens: int, sharing: bool = True, seed: int = 0
) -> Workload:
    """What ``traces`` name (``traces.load``), without programs that an engine of ``kv_tokens`` cannot hold.

    Raises ``TraceError`` naming the trace that is wrong, or saying that nothing is left.
    """
    left_out: Counter[str] = Counter()
    scripts: dict[str, Script] = {}
    for spec in traces:
        try:
            loaded = load(spec, sharing=sharing, seed=seed, left_out=left_out)
        except OSError as error:
            raise TraceError(f"{spec}: {error.strerror or error}") from None
        for script in loaded:
            if script.program in scripts:
                raise TraceError(f"{spec}: program {script.program!r} is in another of the traces too")
            scripts[script.program] = script
    kept: list[Script] = []
    largest = 0
    for root in roots(list(scripts.values())):
        members = family(root, scripts)
        most = max(map(peak_tokens, members))
        largest = max(largest, most)
        if most <= kv_tokens:
            kept += members
        else:
            left_out[f"context over {kv_tokens:,} tokens of KV"] += 1
    if not kept:
        raise TraceError(
            f"no program fits into {kv_tokens:,} KV tokens; the largest context has {largest:,} tokens"
        )
    return Workload(tuple(kept), left_out)


def peak_tokens(script: Script) -> int:
    """The most that any one call of the program holds."""
    return max(
        prompt + turn.output_tokens for prompt, turn in zip(script.contexts(), script.turns, strict=True)
    )
