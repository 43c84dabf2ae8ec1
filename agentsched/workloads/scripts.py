"""What programs will do, known in advance: the input of the simulator, from traces or generators.

A script fixes what depends on the agent and its tools (tokens of each call, gaps, which tool, what the
tool uses) and leaves open what depends on serving: when calls start and end.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of ``tokens`` tokens, the same in every context that holds the same ``key`` at this place."""

    key: str
    tokens: int

    def __post_init__(self) -> None:
        if not self.key or self.tokens < 1:
            raise ValueError(f"a piece needs a key and tokens >= 1, got {self.key!r}, {self.tokens}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One call and the gap after it.

    ``new_tokens``: what the prompt gains over the context so far (prompt and output of the turn
    before); the first turn's includes the script's prefix. ``fresh``: the context starts anew after the
    prefix (compaction), and ``new_tokens`` is the whole prompt. ``pieces``, where a trace names its
    blocks, spells the whole prompt, and ``new_tokens`` says nothing then.

    ``gap_s`` is the time away after the call; ``tool`` and ``command`` (class of a shell command) are
    what the call asked for; ``cpu_s`` and ``memory_bytes`` what the tool uses, 0 where unknown.
    ``agents`` names scripts that the tool call starts: the gap lasts at least until all have ended.
    """

    new_tokens: int
    output_tokens: int
    gap_s: float
    tool: str = ""
    command: str = ""
    fresh: bool = False
    pieces: tuple[Piece, ...] = ()
    cpu_s: float = 0.0
    memory_bytes: int = 0
    agents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.new_tokens < 1 and not self.pieces:
            raise ValueError(f"Turn.new_tokens must be >= 1, got {self.new_tokens}")
        if self.output_tokens < 1:
            raise ValueError(f"Turn.output_tokens must be >= 1, got {self.output_tokens}")
        if not 0 <= self.gap_s < float("inf"):
            raise ValueError(f"Turn.gap_s must be finite and >= 0, got {self.gap_s}")


@dataclass(frozen=True, slots=True)
class Script:
    """What one program does, and when it first arrives (seconds from the start).

    ``prefix``: the head of every context of it, shared with programs that have the same pieces.
    ``deadline_s``: seconds from its arrival within which it should end; None has no deadline.
    ``source``: the set it was drawn from, for breakdowns. ``host``: where its tools run, where hosts have
    limits; "" leaves that to the simulator.
    """

    program: str
    arrives_s: float
    turns: tuple[Turn, ...]
    prefix: tuple[Piece, ...] = ()
    tenant: str = "default"
    deadline_s: float | None = None
    source: str = ""
    host: str = ""

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"script {self.program!r} has no turns")
        if not 0 <= self.arrives_s < float("inf"):
            raise ValueError(f"Script.arrives_s must be finite and >= 0, got {self.arrives_s}")

    @property
    def prefix_tokens(self) -> int:
        return sum(piece.tokens for piece in self.prefix)

    def contexts(self) -> tuple[int, ...]:
        """Tokens of each turn's prompt."""
        context, prompts = 0, []
        for turn in self.turns:
            if turn.pieces:
                prompt = sum(piece.tokens for piece in turn.pieces)
            else:
                prompt = turn.new_tokens if turn.fresh else context + turn.new_tokens
            prompts.append(prompt)
            context = prompt + turn.output_tokens
        return tuple(prompts)
