"""What an engine asks of whatever computes: rows of a step in, what was sampled after them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentsched.engines.contract import Logprobs, Sampling


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step.

    ``tokens`` are computed in this step (a chunk of prefill, or the one token of a decode);
    ``start`` is the position of the first of them, so positions ``[0, start)`` are in KV already.
    ``blocks`` covers at least ``start + len(tokens)`` positions; it belongs to the engine and holds
    for this step only: a block may be swapped for an equal one that another call filled first.
    ``sampling`` is None where no logits are needed after the row; ``step`` counts the call's output
    tokens before this one. ``context`` is the call's whole context so far; it grows after the step.
    """

    call: str
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    sampling: Sampling | None
    step: int
    context: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A sampled token with the log probabilities that its call asked for."""

    token: int
    logprobs: Logprobs


@dataclass(frozen=True, slots=True)
class RowFailed:
    """Nothing could be sampled after a row; ``reason`` says why. Its call is aborted, no other is."""

    reason: str


Sampled = int | ScoredToken | RowFailed | None
"""What came of a row: a token, or nothing where nothing was asked for."""


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

    def run(self, rows: Sequence[Row]) -> tuple[float, Sequence[Sampled]]:
        """Write the rows' KV into their blocks and sample a token after each row with ``sampling``.

        Rows never share a block that is written in this step, and none reads what another writes.
        Returns the seconds taken and what came of each row. Raises ``MemoryError`` if there is too little
        memory for so large a step; then some of the rows may be asked for again. What else it raises
        ends the calls of the batch, and the engine goes on.
        """
        ...
