"""What the simulator asks of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import StepReport
from agentsched.engines.analytic import Output


class SimulatedEngine(Protocol):
    """An engine in virtual time. ``next_s``: when it wants ``advance`` to be called; None: never."""

    @property
    def name(self) -> str: ...
    @property
    def capacity_tokens(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def host_tokens(self) -> int: ...
    @property
    def max_running(self) -> int: ...
    @property
    def next_s(self) -> float | None: ...
    def submit(
        self,
        call: str,
        program: str,
        pieces: Sequence[tuple[str, int]],
        prompt_tokens: int,
        output_tokens: int,
        now: float,
    ) -> None: ...
    def order(self, order: EngineOrder, now: float) -> None: ...
    def forget(self, program: str) -> None: ...
    def advance(self, now: float) -> list[Output]: ...
    def report(self, now: float, *, snapshot: bool = False) -> StepReport: ...
    def check_invariants(self) -> None: ...
