"""Text in and out of engines that speak tokens: chat templates, tool calls, recorded answers."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from agentsched.engines.contract import Sampling


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a chat completion request that an engine needs. ``messages`` and ``tools`` are in
    the OpenAI form; the gateway has checked their types. ``prompt``, if set, is text or tokens to go on
    with as they are, and there are no messages."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    prompt: str | list[int] | None = None
    max_output_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A request in tokens. ``recorded`` as in ``GenerateRequest``; ``recorded_cut``: there was more of it
    than the request's limit allows."""

    prompt: list[int]
    sampling: Sampling
    recorded: list[int] | None = None
    recorded_cut: bool = False


class ToolCallText(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call as the model wrote it: ``arguments`` is JSON text. The gateway mints its id."""

    name: str
    arguments: str


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What some output tokens add to the answer."""

    text: str = ""
    tool_calls: tuple[ToolCallText, ...] = ()


class OutputDecoder(Protocol):
    """Turns one call's output tokens into text and tool calls as they come."""

    def feed(self, tokens: list[int]) -> Delta:
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

    def decoder(self) -> OutputDecoder: ...
