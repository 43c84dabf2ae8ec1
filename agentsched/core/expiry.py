"""When a program that says nothing any more is taken to have ended.

Most agents never say that they are done. A program without calls and without a running tool has ended, by
this rule, once what is learned of gaps makes a return improbable (``graphs/returns.py``). Closing one too
early costs little: it is known again when it comes back, its KV stays until space is needed, and the models
learn from it that such a gap may last so long.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentsched.core.program_state import Program
from agentsched.core.state import State

SILENT_TOOL_FACTOR = 4
"""A tool that said nothing for so many ceilings is taken for dead: its reporter is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """Never before ``floor_s`` of silence, never after ``ceiling_s`` (which counts if it is less); between
    them, once the program returns with less than ``probability``."""

    floor_s: float = 60.0
    ceiling_s: float = 3600.0
    probability: float = 0.01

    def expired(self, state: State, now: float) -> list[str]:
        """Whose silence has lasted long enough, in order of opening. Changes nothing."""
        return [name for name, program in state.programs.items() if self._over(state, program, now)]

    def _over(self, state: State, program: Program, now: float) -> bool:
        silent_s = now - program.heard_s
        if program.calls or silent_s < min(self.floor_s, self.ceiling_s):
            return False
        if program.running:
            return silent_s >= SILENT_TOOL_FACTOR * self.ceiling_s
        if silent_s >= self.ceiling_s:
            return True
        # Who never called, or whose client was cut off, is in no gap that anything was learned of.
        if program.gap_since_s is None or program.gap_is_retry:
            return False
        survival = state.gaps.survival(program.gap_key, now - program.gap_since_s)
        return state.returns.probability(program.awaited, survival) < self.probability
