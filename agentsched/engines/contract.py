"""The engine contract: what every engine can be asked, declares, and reports.

An engine is a process of its own. It comes in two layers, so that all engines share the outer one:

* ``StepEngine``: the machine itself, advanced one step at a time by whoever hosts it (a process,
  the simulator in virtual time, a test). It owns the KV and carries standing orders out alone.
* ``Engine``: the same thing seen from the daemon, asynchronous and possibly far away.

Tokens go in and out; text, chat templates and tool calls are the business of a ``Frontend``.
Reports to the core are the vocabulary of ``agentsched.core.events``: never a token or a block.
Times are monotonic seconds of the machine; sizes are tokens unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

import msgspec

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import CallAborted, CallFinished, CallStarted, FirstToken, StepReport


class EngineError(Exception):
    """Base of what can go wrong between daemon and engine.

    * ``RequestRefused``: the caller's request cannot be served; the engine is fine.
    * ``EngineGone``: the engine's process ended or stopped answering; retry after its restart.
    """


class RequestRefused(EngineError):
    """The request is at fault (too long, unknown model, bad parameters)."""


class EngineGone(EngineError):
    """The engine is at fault; the same request may succeed later."""


class Lack(msgspec.Struct, frozen=True):
    """What of the scheduling an engine has no part in: ``what``, and ``remedy``, how it could be had."""

    what: str
    remedy: str


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What programs get of an engine, for people.

    ``level``: ``retention`` if it carries out what KV is worth over time, ``soft`` if it keeps KV or does
    not, ``order`` if calls are let in, ordered and placed, and what KV it keeps is its own affair.
    """

    level: Literal["order", "soft", "retention"] = "retention"
    does: tuple[str, ...] = ()
    lacks: tuple[Lack, ...] = ()


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine declares. A claim that is true here is tested by the contract suite.

    ``host_tokens_per_s``: how fast KV comes up from host memory, where there is a tier of it. ``retention``:
    it is to be told what KV is worth, and heeds it as far as ``service`` says.
    """

    kind: str
    capacity_tokens: int
    block_tokens: int
    max_context_tokens: int
    vocabulary: int
    host_capacity_tokens: int = 0
    host_tokens_per_s: float = 0.0
    max_running: int = 64
    ranks: bool = False
    retention: bool = False
    tail_eviction: bool = False
    host_tier: bool = False
    recorded_outputs: bool = False
    logprobs: bool = False
    grammars: bool = False
    service: Service = Service()


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How output tokens are chosen. ``temperature`` 0 is greedy.

    Scores are changed in this order: ``logit_bias``, the penalties (``repetition_penalty`` of what is in
    prompt and output, the other two of what is in the output), ``grammar``, ``temperature``; then the
    likeliest ``top_k`` stay (0: all), of these the smallest set that reaches ``top_p``, and of these
    what is at least ``min_p`` times as likely as the likeliest. What is drawn depends on the scores,
    ``seed`` and the number of tokens before it, so never on the batch.

    ``grammar`` (in the Lark notation of llguidance) is what the output must follow. ``logprobs`` asks
    for the log probability of each token, before all of these changes, and of so many alternatives.
    ``stop_tokens`` end the output and are not part of it.
    """

    max_output_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    grammar: str = ""
    stop_tokens: tuple[int, ...] = ()


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call. ``recorded``: tokens to emit in place of sampled ones, at full computing cost;
    the call ends after the last of them.

    ``salt`` names who may share this call's KV: calls find in the cache what calls of the same salt left
    there, and by their times tell nothing of others. The prompt's first ``shared_prefix_tokens`` are no
    secret, and are shared with all: a system prompt that every tenant has.
    """

    call: str
    program: str
    prompt: list[int]
    sampling: Sampling
    recorded: list[int] | None = None
    salt: str = ""
    shared_prefix_tokens: int = 0


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities: of the output token, and of the likeliest ones there."""

    token: float
    top: list[tuple[int, float]]


class TokensOut(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """Output tokens of one call, in order; ``logprobs`` of each where they were asked for."""

    call: str
    tokens: list[int]
    logprobs: list[Logprobs] | None = None


EngineOutput = TokensOut | CallStarted | FirstToken | CallFinished | CallAborted | StepReport


class StepEngine(Protocol):
    """The machine itself. Not thread-safe: one host drives it."""

    @property
    def capabilities(self) -> Capabilities:
        """Constant over the engine's life."""
        ...

    def submit(self, request: GenerateRequest, now: float) -> None:
        """Queue a call. Raises ``RequestRefused`` if it can never fit, or its id is in use;
        nothing has changed then."""
        ...

    def abort(self, call: str, now: float) -> None:
        """End a call at once (``CallAborted`` follows from the next ``step``); its computed KV
        stays as cache. Unknown or ended calls are ignored."""
        ...

    def order(self, orders: Sequence[EngineOrder], now: float) -> None:
        """Take standing orders. Idempotent; what is older than what is known is ignored."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would compute anything now."""
        ...

    def step(self, now: float) -> tuple[float, list[EngineOutput]]:
        """Compute one batch. Returns how long it took in seconds (measured, or by the cost model)
        and what came of it; the outputs hold from ``now`` + that time on."""
        ...

    def report(self, now: float, *, snapshot: bool = False) -> StepReport:
        """What is held and what happened since the last report. Resets the deltas."""
        ...

    def check_invariants(self) -> None:
        """Every block is accounted for exactly once. Raises AssertionError; changes nothing."""
        ...


class Engine(Protocol):
    """An engine as the daemon sees it: what is scheduled. All methods may raise ``EngineGone``.

    How calls get there is another matter: a ``TokenEngine`` takes tokens; one that is a server of its own
    takes whole requests (``agentsched.engines.upstream``).
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def start(self) -> None:
        """Start or connect; returns when the engine can take calls."""
        ...

    async def order(self, orders: Sequence[EngineOrder]) -> None:
        """Send standing orders; returns when they are written out, not when carried out."""
        ...

    def reports(self) -> AsyncIterator[StepReport]:
        """Step reports, the first one a snapshot; ends when the engine is gone."""
        ...

    async def close(self) -> None:
        """Stop the engine and wait for its end. Never raises, may be called twice."""
        ...


class TokenEngine(Engine, Protocol):
    """An engine that computes tokens from tokens."""

    def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[TokensOut | CallStarted | FirstToken | CallFinished | CallAborted]:
        """Run one call to its end. Closing the iterator early aborts the call in the engine.
        Raises ``RequestRefused`` before the first item if the request is at fault."""
        ...
