"""What programs will do, for the one policy that may know: the yardstick of what prediction could gain."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from agentsched.core.foresight import Rest
from agentsched.workloads.scripts import Script


class ScriptOracle:
    """Knows the scripts. A gap is as long as its script says; sub-agents or a crowded host may prolong it."""

    def __init__(self, script_of: Callable[[str], Script]) -> None:
        self._script_of = script_of
        self._rests: dict[str, list[Rest]] = {}

    def rest(self, program: str, calls_done: int) -> Rest:
        """What is left after so many of the program's calls: calls, their largest context, the gap now."""
        rests = self._rests.get(program)
        if rests is None:
            rests = self._rests[program] = _rests(self._script_of(program))
        return rests[min(calls_done, len(rests) - 1)]


def _rests(script: Script) -> list[Rest]:
    """By calls done, from none to all."""
    contexts = [
        prompt + turn.output_tokens for prompt, turn in zip(script.contexts(), script.turns, strict=True)
    ]
    peaks = [*list(accumulate(reversed(contexts), max))[::-1], contexts[-1]]
    gaps = [0.0, *(turn.gap_s for turn in script.turns)]
    calls = len(script.turns)
    return [Rest(calls - done, peaks[done], gaps[done]) for done in range(calls + 1)]
