"""All that the core learns of programs, beside their state: the models, and whom they were wrong about."""

from __future__ import annotations

from agentsched.core.program_state import Program
from agentsched.graphs.predict import (
    ContextModel,
    GapModel,
    Learned,
    MemoryModel,
    ProgressModel,
    ReturnModel,
)

MOST_GONE = 4096
"""Expired programs that are remembered, so that those that come back correct what was believed."""


class Models:
    """The part of ``State`` that outlives programs."""

    def __init__(self) -> None:
        self.gaps = GapModel()
        self.memory = MemoryModel()
        self.progress = ProgressModel()
        self.contexts = ContextModel()
        self.returns = ReturnModel()
        self._gone: dict[str, Program] = {}  # expired in a gap, and not back yet

    def learned(self) -> Learned:
        """What the models know, as a value."""
        return Learned(
            self.gaps.dump(),
            self.memory.dump(),
            self.progress.dump(),
            self.contexts.dump(),
            self.returns.dump(),
        )

    def learn(self, known: Learned) -> None:
        """Know that and no more. Raises ValueError where it does not fit."""
        self.contexts.load(known.contexts)
        self.gaps.load(known.gaps)
        self.memory.load(known.memory)
        self.progress.load(known.progress)
        self.returns.load(known.returns)

    def opened(self, program: Program, now: float) -> None:
        """A program of a name that had expired was not over after all."""
        gone = self._gone.pop(program.name, None)
        if gone is not None and gone.gap_since_s is not None:
            self.gaps.observe(gone.gap_key, now - gone.gap_since_s)
            self.returns.correct(gone.awaited)

    def closed(self, program: Program, *, expired: bool) -> None:
        """What a whole program was like."""
        if program.calls_done:
            self.contexts.observe_program(
                calls=program.calls_done,
                first_prompt_tokens=program.first_prompt_tokens,
                final_tokens=program.context_tokens,
                program=program.name,
            )
        if program.gap_since_s is None or program.gap_is_retry:
            return
        self.returns.observe(program.awaited, returned=False)
        if expired:
            self._gone[program.name] = program
            if len(self._gone) > MOST_GONE:
                del self._gone[next(iter(self._gone))]
