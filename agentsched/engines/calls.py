"""A call inside an engine: what a request may ask, and how far its computation has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from agentsched.core.events import Held, StepReport
from agentsched.engines.contract import Capabilities, GenerateRequest, RequestRefused
from agentsched.engines.prefix import Block, Keys, Table
from agentsched.engines.sampling_limits import check_capable, check_sampling


def check_request(request: GenerateRequest, limits: Capabilities) -> int:
    """How many tokens the output may have. Raises ``RequestRefused`` for what can never be served."""
    prompt, recorded = request.prompt, request.recorded
    if not prompt:
        raise RequestRefused("prompt is empty; it needs one token at least")
    if recorded is not None and not limits.recorded_outputs:
        raise RequestRefused(f"recorded: a {limits.kind} engine cannot emit recorded outputs")
    if recorded is not None and not recorded:
        raise RequestRefused("recorded is empty; it needs one token at least")
    for name, tokens in (("prompt", prompt), ("recorded", recorded)):
        if tokens and not (min(tokens) >= 0 and max(tokens) < limits.vocabulary):
            raise RequestRefused(f"{name} has a token outside the vocabulary [0, {limits.vocabulary})")
    if not 0 <= request.shared_prefix_tokens <= len(prompt):
        raise RequestRefused(
            f"shared_prefix_tokens must be from 0 to the prompt's {len(prompt)} tokens, "
            f"got {request.shared_prefix_tokens}"
        )
    check_sampling(request.sampling)
    check_capable(request.sampling, limits, recorded=recorded is not None)
    output = len(recorded) if recorded is not None else request.sampling.max_output_tokens
    room = min(limits.max_context_tokens, limits.capacity_tokens)
    if len(prompt) + output > room:
        raise RequestRefused(
            f"prompt of {len(prompt)} and output of up to {output} tokens exceed the {room} tokens "
            "that a context may have; shorten the prompt or lower max_output_tokens"
        )
    return output


@dataclass(eq=False, slots=True)
class Call:
    """``context`` is the prompt and the output so far; the first ``computed`` of it are in KV, or on the
    way there from host memory until ``arrives`` promotions have ended.

    ``table`` is None while the call is queued. ``match`` is what was cached of its context when it
    last tried to start, and ``found`` how many blocks that were when it did start; of these it may
    compute again what lay in host memory. ``decoding``: all but the newest output token is in KV.
    ``overtaken``: how often a later call of equal rank was started before it.
    """

    request: GenerateRequest
    arrival: int
    output_limit: int
    context: list[int]
    keys: Keys
    match: list[Block] = field(default_factory=list)
    table: Table | None = None
    computed: int = 0
    found: int = 0
    arrives: int = 0
    emitted: int = 0
    overtaken: int = 0
    decoding: bool = False
    started: bool = False
    cached_tokens: int = 0
    recomputed_tokens: int = 0

    def next_token(self, sampled: int | None) -> int | None:
        """The token to emit; None if the sampled one ends the output."""
        recorded = self.request.recorded
        if recorded is not None:
            return recorded[self.emitted]
        assert sampled is not None, f"the executor sampled nothing for {self.request.call}"
        return None if sampled in self.request.sampling.stop_tokens else sampled


class Pool(Protocol):
    """What a report asks of the KV."""

    @property
    def block_tokens(self) -> int: ...

    @property
    def free_blocks(self) -> int: ...

    @property
    def idle_blocks(self) -> int: ...

    def held(self) -> tuple[Held, ...]: ...

    def take_changes(self) -> tuple[tuple[Held, ...], int]: ...


@dataclass(slots=True)
class Tally:
    """What happened in an engine since its last report.

    ``step_s`` sums the steps; ``broken_leases`` and ``preempted`` name programs, in order.
    """

    prefilled_tokens: int = 0
    decoded_tokens: int = 0
    recomputed_tokens: int = 0
    step_s: float = 0.0
    broken_leases: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)

    def report(self, engine: str, kv: Pool, running: int, queued: int, *, snapshot: bool) -> StepReport:
        """The report of all this; ``held`` counts whole blocks. Takes the changes from ``kv``."""
        changes, evicted = kv.take_changes()
        return StepReport(
            engine=engine,
            free_tokens=kv.free_blocks * kv.block_tokens,
            evictable_tokens=kv.idle_blocks * kv.block_tokens,
            held=kv.held() if snapshot else changes,
            snapshot=snapshot,
            evicted_tokens=evicted * kv.block_tokens,
            prefilled_tokens=self.prefilled_tokens,
            decoded_tokens=self.decoded_tokens,
            recomputed_tokens=self.recomputed_tokens,
            running=running,
            queued=queued,
            step_s=self.step_s,
            broken_leases=tuple(self.broken_leases),
            preempted=tuple(self.preempted),
        )
