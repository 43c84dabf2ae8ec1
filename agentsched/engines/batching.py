"""Continuous batching over paged KV: the machine shared by all of our own engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentsched.engines.contract import Sampling


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step.

    ``tokens`` are computed in this step (a chunk of prefill, or the one token of a decode);
    ``start`` is the position of the first of them, so positions ``[0, start)`` are in KV already.
    ``blocks`` covers at least ``start + len(tokens)`` positions. ``sampling`` is None where no
    logits are needed after the row; ``step`` counts the call's output tokens before this one.
    """

    call: str
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    sampling: Sampling | None
    step: int


class Executor(Protocol):
    """What computes the rows: a model on a device, or a cost model."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_tokens(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def max_context_tokens(self) -> int: ...

    def run(self, rows: Sequence[Row]) -> tuple[float, list[int | None]]:
        """Write the rows' KV into their blocks and sample a token after each row with ``sampling``.

        Rows never share a block that is written in this step, and none reads what another writes.
        Returns the seconds taken and one token, or None, a row. Raises ``FloatingPointError`` if a
        row's logits are not finite: the calls of this batch are then aborted, the engine goes on.
        """
        ...
