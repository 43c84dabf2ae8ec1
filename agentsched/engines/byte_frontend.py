"""Text for the simulated engine: one byte is one token, so it needs no tokenizer and no model.

Prompts are ASCII; every other character is written as its escape, so that what comes out of the
engine is the same tokens when it comes back in the next prompt.

The simulated model knows nothing, so its answers can be told in advance. If the last message that is
not a tool's result begins with

* ``/say TEXT``, the answer is TEXT;
* ``/call NAME ARGUMENTS``, the answer is a call of that tool (ARGUMENTS is JSON text); once its result
  is there, the next answer is the text ``done``.

Any other prompt is answered with characters of no meaning, up to the limit of the request. No format
and no choice of tools is heeded. Who serves the model may give it another mind: a function from
request to answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agentsched.engines.contract import Logprobs, RequestRefused
from agentsched.engines.frontend import ChatRequest, Delta, Prepared, ToolCallText

MODEL = "simulated"
VOCABULARY = 128
DEFAULT_OUTPUT_TOKENS = 64
Mind = Callable[[ChatRequest], str | None]
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_CALL, _END = "\x01", "\x02"


class ByteFrontend:
    """``agentsched.engines.frontend.Frontend`` of the simulated model."""

    def __init__(self, max_context_tokens: int, mind: Mind | None = None) -> None:
        """``mind`` gives the answer to a request (with ``call_text`` for calls of tools), or None for one
        without meaning."""
        self._max_context_tokens = max_context_tokens
        self._mind = mind or _told

    def models(self) -> list[str]:
        return [MODEL]

    def decoder(self, prepared: Prepared) -> ByteDecoder:
        return ByteDecoder()

    def prepare(self, request: ChatRequest) -> Prepared:
        """See ``Frontend.prepare``."""
        if request.model.removeprefix("openai/") != MODEL:
            raise RequestRefused(f"model: {request.model!r} is not served; served is {MODEL}")
        if request.logprobs is not None:
            raise RequestRefused("logprobs: a simulated model has none")
        prompt = _prompt(request)
        room = self._max_context_tokens - len(prompt)
        if room < 1:
            raise RequestRefused(
                f"messages: the prompt has {len(prompt)} tokens and leaves no room for output in a context "
                f"of {self._max_context_tokens} tokens"
            )
        sampling = request.sampling(DEFAULT_OUTPUT_TOKENS)
        told = self._mind(request)
        whole = None if told is None else _encode(told)
        recorded = whole and whole[: min(room, request.max_output_tokens or room)]
        limit = min(room, sampling.max_output_tokens) if recorded is None else len(recorded)
        sampling = msgspec.structs.replace(sampling, max_output_tokens=limit)
        return Prepared(prompt=prompt, sampling=sampling, recorded=recorded, recorded_cut=recorded != whole)


def call_text(name: str, arguments: str) -> str:
    """A call of a tool as the simulated model writes it; ``arguments`` is JSON text."""
    return f"{_CALL}{name} {arguments}{_END}"


class ByteDecoder:
    """``OutputDecoder`` of one answer. What is no well-formed tool call is text, marks and all."""

    def __init__(self) -> None:
        self._kept = ""

    def feed(self, tokens: list[int], logprobs: Sequence[Logprobs] | None = None) -> Delta:
        text, calls = "", []
        for token in tokens:
            char = chr(token % VOCABULARY)
            if char == _CALL:
                text, self._kept = text + self._kept, char
            elif not self._kept:
                text += char
            elif char != _END:
                self._kept += char
            elif (call := _call(self._kept[1:])) is not None:
                calls.append(call)
                self._kept = ""
            else:
                text, self._kept = text + self._kept + char, ""
        return Delta(text=text, tool_calls=tuple(calls))

    def finish(self) -> Delta:
        kept, self._kept = self._kept, ""
        return Delta(text=kept)


def _call(text: str) -> ToolCallText | None:
    name, _, arguments = text.partition(" ")
    try:
        json.loads(arguments)
    except ValueError:
        return None
    return ToolCallText(name=name, arguments=arguments)


def _encode(text: str) -> list[int]:
    return list(text.encode("ascii", "backslashreplace"))


def _prompt(request: ChatRequest) -> list[int]:
    if isinstance(request.prompt, list):
        return request.prompt
    if request.prompt is not None:
        return _encode(request.prompt)
    if not request.messages:
        raise RequestRefused("messages: must not be empty")
    parts = [json.dumps(tool) + "\n" for tool in request.tools]
    parts += [_render(message, index) for index, message in enumerate(request.messages)]
    return _encode("".join(parts) + "assistant: ")


def _told(request: ChatRequest) -> str | None:
    """The answer that the conversation asks for, if it does."""
    messages = request.messages
    said = [m for m in messages if m.get("role") == "user"]
    text = _text(said[-1], messages.index(said[-1])) if said else ""
    if isinstance(request.prompt, str):
        text = request.prompt
    command, _, rest = text.partition(" ")
    if command == "/say" and rest:
        return rest
    if command == "/call" and rest and messages:
        return "done" if messages[-1].get("role") == "tool" else f"{_CALL}{rest}{_END}"
    return None


def _render(message: dict[str, Any], index: int) -> str:
    role = message.get("role")
    if role not in _ROLES:
        raise RequestRefused(f"messages[{index}].role: {role!r} is not one of {', '.join(sorted(_ROLES))}")
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    calls = "".join(call_text(f["name"], f.get("arguments", "")) for f in functions)
    return f"{role}: {_text(message, index)}{calls}\n"


def _text(message: dict[str, Any], index: int) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    for number, part in enumerate(content):
        if not isinstance(part.get("text"), str):
            raise RequestRefused(f"messages[{index}].content[{number}]: only parts of type 'text' are served")
    return "".join(part["text"] for part in content)
