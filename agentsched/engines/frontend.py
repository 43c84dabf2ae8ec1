"""Text in and out of engines that speak tokens: chat templates, tool calls, recorded answers."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from agentsched.engines.contract import Logprobs, Sampling
from agentsched.engines.sampling_limits import check_sampling


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a request that an engine needs. ``messages``, ``tools`` and ``response_format`` are in
    the OpenAI form; the gateway has checked their types. ``prompt``, if set, is text or tokens to go on
    with as they are, and there are no messages. The sampling parameters are those of ``Sampling``.

    ``tool_choice`` is ``auto``, ``required``, or one tool's name after ``tool:``. ``logprobs`` is None
    where none are asked for, else how many alternatives. Without a ``seed`` chance is another one each time.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    prompt: str | list[int] | None = None
    max_output_tokens: int | None = None
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None

    def sampling(self, limit: int, *, grammar: str = "", stop_tokens: tuple[int, ...] = ()) -> Sampling:
        """What an engine is asked for, with ``limit`` output tokens where the request says nothing.
        Raises ``RequestRefused`` naming the field that is out of its range."""
        chance = secrets.randbits(63) if self.seed is None and self.temperature else 0
        sampling = Sampling(
            max_output_tokens=limit if self.max_output_tokens is None else self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=chance if self.seed is None else self.seed,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            logprobs=self.logprobs,
            grammar=grammar,
            stop_tokens=stop_tokens,
        )
        check_sampling(sampling)
        return sampling


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A request in tokens. ``recorded`` as in ``GenerateRequest``; ``recorded_cut``: there was more of it
    than the request's limit allows. ``tool_calls`` says whether the answer is looked through for tool
    calls, and ``single_tool_call`` that it ends after the first."""

    prompt: list[int]
    sampling: Sampling
    recorded: list[int] | None = None
    tool_calls: bool = False
    single_tool_call: bool = False
    recorded_cut: bool = False


class ToolCallText(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call as the model wrote it: ``arguments`` is JSON text. The gateway mints its id."""

    name: str
    arguments: str


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """An output token's log probability and those of the likeliest tokens there, each by its bytes."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What some output tokens add to the answer. ``ended``: it is complete, whatever tokens follow."""

    text: str = ""
    tool_calls: tuple[ToolCallText, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    ended: bool = False


class OutputDecoder(Protocol):
    """Turns one call's output tokens into text and tool calls as they come."""

    def feed(self, tokens: list[int], logprobs: Sequence[Logprobs] | None = None) -> Delta:
        """What these tokens add; incomplete characters and tool calls wait for the next ones."""
        ...

    def finish(self) -> Delta:
        """What is left at the end. A tool call cut off by the length limit becomes text."""
        ...


class Frontend(Protocol):
    """One model family's text side. Pure computation, called in the daemon's process."""

    def models(self) -> list[str]:
        """Names that ``prepare`` accepts; ``recorded/<script>`` for each known script."""
        ...

    def prepare(self, request: ChatRequest) -> Prepared:
        """Render and tokenize. Raises ``RequestRefused`` naming the field at fault (unknown model,
        a prompt that leaves no room for output, roles the template does not know)."""
        ...

    def decoder(self, prepared: Prepared) -> OutputDecoder:
        """For the answer to a prepared request."""
        ...
