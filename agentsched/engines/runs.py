"""Calls and runs of steps of the analytic engine.

Between two things that happen all steps of an engine are alike: the same rows decode, the same call
prefills whole chunks. Such a *run* of k steps takes

    k (step + chunk + D row) + context (k S + D k (k - 1) / 2) + attention (k P + c^2 k (k - 1) / 2)

seconds for D decoding rows of S tokens of context in all, and a chunk of c tokens whose pairs number P
at first. So the time of any number of its steps is known at once, and the other way round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agentsched.engines.runs_kv import Path, Pieces


@dataclass(slots=True, eq=False)
class Call:
    """One call in the engine. Of its blocks the first ``in_tree`` are cached, ``private`` are its own.

    ``emitted`` output tokens are out; of a decoding call, as many as steps since ``step0`` more.
    """

    name: str
    program: str
    pieces: Pieces
    prompt_tokens: int
    output_tokens: int
    arrival: int
    path: Path | None = None
    computed: int = 0
    emitted: int = 0
    decoding: bool = False
    in_tree: int = 0
    private: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    started: bool = False
    ready_s: float = 0.0
    step0: int = 0

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.emitted


@dataclass(slots=True)
class Run:
    """``steps`` equal steps from ``begin_s`` on: seconds after k of them are ``a k + b k (k - 1) / 2``."""

    begin_s: float
    steps: int
    batch: list[tuple[Call, int]] = field(default_factory=list)
    a: float = 0.0
    b: float = 0.0

    def end_s(self) -> float:
        return self.begin_s + self.a * self.steps + self.b * (self.steps * (self.steps - 1) / 2)

    def cut(self, now: float) -> None:
        """End with the step that is on at ``now``."""
        elapsed = now - self.begin_s
        linear = self.a - self.b / 2
        if self.b > 0:
            steps = (math.sqrt(linear * linear + 2 * self.b * elapsed) - linear) / self.b
        else:
            steps = elapsed / self.a if self.a else self.steps
        self.steps = max(1, min(self.steps, math.ceil(steps - 1e-9)))
