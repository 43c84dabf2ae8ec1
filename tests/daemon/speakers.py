"""The APIs as their own client libraries speak them, so that one test can be held against them all.

A ``Speaker`` holds a conversation: it sends what a real client would send next, and tells what it
understood of the answer.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import litellm
import pytest
from anthropic import AsyncAnthropic
from openai import APIError, AsyncOpenAI

MODEL = "simulated"
BASH = {"type": "object", "properties": {"command": {"type": "string"}}}


@dataclass
class Turn:
    """What a client understood of an answer. ``tools`` are (id, name, arguments)."""

    text: str
    tools: list[tuple[str, str, dict[str, Any]]]
    reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Speaker(ABC):
    """``limit`` is of each answer. ``reasons`` are the API's words for stop, length and tool_calls."""

    reasons: tuple[str, str, str] = ("stop", "length", "tool_calls")

    def __init__(self, url: str, limit: int = 1000, **options: Any) -> None:
        self.url, self.limit, self.options = url, limit, options
        self.history: list[Any] = []

    async def __aenter__(self) -> Speaker:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def say(self, text: str, *, stream: bool = False) -> Turn:
        self.history.append({"role": "user", "content": text})
        return await (self._streamed() if stream else self._whole())

    async def result(self, identifier: str, text: str, *, stream: bool = False) -> Turn:
        self.history.append(self._result(identifier, text))
        return await (self._streamed() if stream else self._whole())

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    def _result(self, identifier: str, text: str) -> dict[str, Any]: ...

    @abstractmethod
    async def _whole(self) -> Turn: ...

    @abstractmethod
    async def _streamed(self) -> Turn: ...


class OpenAIChat(Speaker):
    def __init__(self, url: str, limit: int = 1000, **options: Any) -> None:
        super().__init__(url, limit, **options)
        self.client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", **options)

    async def close(self) -> None:
        await self.client.close()

    def _arguments(self) -> dict[str, Any]:
        tool = {"type": "function", "function": {"name": "bash", "parameters": BASH}}
        return {"model": MODEL, "messages": self.history, "tools": [tool], "max_tokens": self.limit}

    def _result(self, identifier: str, text: str) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": identifier, "content": text}

    async def _create(self, **more: Any) -> Any:
        return await self.client.chat.completions.create(**self._arguments(), **more)

    async def _whole(self) -> Turn:
        answer = await self._create()
        (choice,) = answer.choices
        self.history.append(choice.message.model_dump(exclude_none=True))
        calls = [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
        return self._turn(choice.message.content or "", calls, choice.finish_reason, answer.usage)

    async def _streamed(self) -> Turn:
        text, reason, usage = "", "", None
        calls: list[tuple[str, str, str]] = []
        async for chunk in await self._create(stream=True, stream_options={"include_usage": True}):
            usage = getattr(chunk, "usage", None) or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                for call in choice.delta.tool_calls or []:
                    assert call.index == len(calls)
                    calls.append((call.id, call.function.name, call.function.arguments))
                reason = choice.finish_reason or reason
        tools = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]
        said: dict[str, Any] = {"role": "assistant", "content": text or None}
        self.history.append(said | ({"tool_calls": tools} if tools else {}))
        return self._turn(text, calls, reason, usage)

    @staticmethod
    def _turn(text: str, calls: list[tuple[str, str, str]], reason: str, usage: Any) -> Turn:
        tools = [(identifier, name, json.loads(arguments)) for identifier, name, arguments in calls]
        cached = usage.prompt_tokens_details.cached_tokens
        return Turn(text, tools, reason, usage.prompt_tokens, cached, usage.completion_tokens)


class LiteLLM(OpenAIChat):
    async def _create(self, **more: Any) -> Any:
        arguments = self._arguments() | {"model": f"openai/{MODEL}"} | more
        return await litellm.acompletion(
            api_base=f"{self.url}/v1", api_key="none", **arguments, **self.options
        )


class OpenAIResponses(Speaker):
    reasons = ("completed", "incomplete", "completed")

    def __init__(self, url: str, limit: int = 1000, **options: Any) -> None:
        super().__init__(url, limit, **options)
        self.client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", **options)

    async def close(self) -> None:
        await self.client.close()

    def _arguments(self) -> dict[str, Any]:
        tool = {"type": "function", "name": "bash", "parameters": BASH, "strict": False}
        return {"model": MODEL, "input": self.history, "tools": [tool], "max_output_tokens": self.limit}

    def _result(self, identifier: str, text: str) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": identifier, "output": text}

    async def _whole(self) -> Turn:
        return self._understood(await self.client.responses.create(**self._arguments()))

    async def _streamed(self) -> Turn:
        async with self.client.responses.stream(**self._arguments()) as stream:
            events: list[Any] = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        if events[-1].type == "response.failed":  # the library leaves it to its user to look
            nothing: Any = None
            raise APIError(events[-1].response.error.message, nothing, body=None)
        # The library's own get_final_response knows answers that were not cut, only.
        return self._understood(events[-1].response)

    def _understood(self, answer: Any) -> Turn:
        kept = {"parsed", "parsed_arguments"}  # what the library adds
        self.history += [
            item.model_dump(exclude_none=True, exclude=kept, warnings=False) for item in answer.output
        ]
        tools = [
            (item.call_id, item.name, json.loads(item.arguments))
            for item in answer.output
            if item.type == "function_call"
        ]
        usage = answer.usage
        return Turn(
            answer.output_text,
            tools,
            answer.status,
            usage.input_tokens,
            usage.input_tokens_details.cached_tokens,
            usage.output_tokens,
        )


class Anthropic(Speaker):
    reasons = ("end_turn", "max_tokens", "tool_use")

    def __init__(self, url: str, limit: int = 1000, **options: Any) -> None:
        super().__init__(url, limit, **options)
        self.client = AsyncAnthropic(base_url=url, api_key="none", **options)

    async def close(self) -> None:
        await self.client.close()

    def _arguments(self) -> dict[str, Any]:
        tool = {"name": "bash", "input_schema": BASH}
        return {"model": MODEL, "messages": self.history, "tools": [tool], "max_tokens": self.limit}

    def _result(self, identifier: str, text: str) -> dict[str, Any]:
        result = {"type": "tool_result", "tool_use_id": identifier, "content": text}
        return {"role": "user", "content": [result]}

    async def _whole(self) -> Turn:
        return self._understood(await self.client.messages.create(**self._arguments()))

    async def _streamed(self) -> Turn:
        async with self.client.messages.stream(**self._arguments()) as stream:
            return self._understood(await stream.get_final_message())

    def _understood(self, answer: Any) -> Turn:
        blocks = [block.model_dump(exclude_none=True) for block in answer.content]
        self.history.append({"role": "assistant", "content": blocks})
        text = "".join(block.text for block in answer.content if block.type == "text")
        tools = [(b.id, b.name, b.input) for b in answer.content if b.type == "tool_use"]
        usage = answer.usage
        prompt = usage.input_tokens + usage.cache_read_input_tokens
        cached = usage.cache_read_input_tokens
        return Turn(text, tools, answer.stop_reason, prompt, cached, usage.output_tokens)


# What litellm warns of is its own use of other packages.
_LITELLM = pytest.param(LiteLLM, marks=pytest.mark.filterwarnings("ignore::DeprecationWarning"))
SPEAKERS = (OpenAIChat, OpenAIResponses, Anthropic, _LITELLM)
