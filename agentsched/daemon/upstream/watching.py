"""Looks at an answer on its way past: when it begins, what it says, which tools it calls, what it took.

An answer is passed on whatever is made of it here. Events of a stream are looked at one by one until the
first token is out, and after that some kilobytes at a time, since nothing that they say is needed sooner.

One thing is taken out again: the chunk with the usage that was asked for in the client's place
(``hide_usage``). Chunks go on by whole events then; a server that cuts them elsewhere has them put together
first.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec

from agentsched.engines.upstream.paths import CHAT, COMPLETIONS, MESSAGES, RESPONSES

_log = logging.getLogger(__name__)

BATCH_BYTES = 4096
LARGEST_BYTES = 16_000_000
"""Of an answer that is no stream so much is looked at; larger ones (audio, images) are passed on unseen."""

_EVENT_END = re.compile(rb"\r?\n\r?\n")
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Cached | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Tool(msgspec.Struct):
    id: str | None = None
    index: int | None = None
    function: _Function | None = None


class _Said(msgspec.Struct):
    """A message of the chat API, or what a chunk adds to one."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[_Tool] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None


class _Block(msgspec.Struct):
    """A block of the Anthropic API, an item of the responses API, or what an event adds to either."""

    type: str | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    text: str | None = None
    arguments: str | None = None
    partial_json: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    content: list[_Block] | None = None


class _Whole(msgspec.Struct):
    usage: _Usage | None = None
    output: list[_Block] | None = None


class _Answer(msgspec.Struct):
    """A whole answer or an event of one, of any of the four APIs."""

    type: str | None = None
    index: int | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    message: _Whole | None = None
    response: _Whole | None = None
    item: _Block | None = None
    content_block: _Block | None = None
    delta: _Block | str | None = None
    content: list[_Block] | None = None
    output: list[_Block] | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class Seen(msgspec.Struct):
    """What was seen of an answer. ``tools``: id and name of each tool call; ``arguments``: of each, in
    pieces, as JSON. Tokens are None where it did not say."""

    began: bool = False
    texts: list[str] = []
    tools: dict[str, str] = {}
    arguments: dict[str, list[str]] = {}
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def use(self, usage: _Usage, path: str) -> None:
        """Later figures replace earlier ones; the Anthropic API tells them in two events."""
        details = usage.prompt_tokens_details or usage.input_tokens_details
        cached = usage.cache_read_input_tokens if details is None else details.cached_tokens
        prompt = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
        output = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
        if prompt is not None and path == MESSAGES:
            prompt += (cached or 0) + (usage.cache_creation_input_tokens or 0)
        if prompt is not None and prompt >= 0:
            self.prompt_tokens = prompt
        if cached is not None and cached >= 0:
            self.cached_tokens = cached
        if output is not None and output >= 0:
            self.output_tokens = output


class Watch:
    """Watches one answer to a request at ``path``."""

    def __init__(self, path: str, *, events: bool, hide_usage: bool = False) -> None:
        self.seen = Seen()
        self._path = path
        self._events = events
        self._hide = hide_usage and events
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._tail = b""  # the beginning of an event whose end has not come
        self._last = b""  # of what was passed on
        self._places: dict[int | None, str] = {}
        """Tool calls by their place in the answer: later pieces of their arguments name only that."""

    @property
    def between_events(self) -> bool:
        """Whether what was passed on so far ends with a whole event."""
        return not self._last or self._last.endswith((b"\n\n", b"\n\r\n"))

    def feed(self, data: bytes) -> bytes:
        """The next bytes; what of them goes on now."""
        if self._hide:
            data = self._without_usage(data)
            self._last = (self._last + data)[-4:]
            return data
        self._last = data[-4:] if len(data) > 3 else (self._last + data)[-4:]
        self._kept.append(data)
        self._kept_bytes += len(data)
        if not self._events:
            if self._kept_bytes > LARGEST_BYTES:
                self._kept.clear()
            return data
        if self._kept_bytes > BATCH_BYTES or not self.seen.began:
            self._look()
        return data

    def rest(self) -> bytes:
        """There is no more; what goes on at the end."""
        return self._tail if self._hide else b""

    def finish(self) -> Seen:
        """All that was seen, once there is no more."""
        if self._events and not self._hide:
            self._look()
        elif self._kept:
            self._take(b"".join(self._kept))
        return self.seen

    def _look(self) -> None:
        data = b"".join((self._tail, *self._kept))
        self._kept.clear()
        self._kept_bytes = 0
        *events, self._tail = _EVENT_END.split(data)
        for event in events:
            self._event(event)

    def _without_usage(self, data: bytes) -> bytes:
        data = self._tail + data
        passed: list[bytes] = []
        begin = 0
        for end in _EVENT_END.finditer(data):
            event = data[begin : end.start()]
            hidden = b'"usage"' in event and _NO_CHOICES.search(event) is not None
            if not hidden:
                passed.append(data[begin : end.end()])
            begin = end.end()
            self._event(event)
        self._tail = data[begin:]
        return b"".join(passed)

    def _event(self, event: bytes) -> None:
        """One event: of its lines the data, which is one line but for odd servers."""
        at = event.find(b"data:")
        if at < 0:
            return
        data = event[at + 5 :]
        if b"\ndata:" in data:
            data = b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
        if data.strip() != b"[DONE]":
            self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            answer = _decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            _log.debug("%s: an answer's words are not understood, and pass unseen: %s", self._path, error)
            return
        for told in (answer, answer.message, answer.response):
            if told is not None and told.usage is not None:
                self.seen.use(told.usage, self._path)
        if self._path in (CHAT, COMPLETIONS):
            for choice in answer.choices:
                self._choice(choice)
        else:
            self._blocks(answer)

    def _choice(self, choice: _Choice) -> None:
        seen, said = self.seen, choice.delta or choice.message
        if choice.text:
            seen.began = True
            if choice.index == 0:
                seen.texts.append(choice.text)
        if said is None:
            return
        if said.content or said.tool_calls or said.reasoning_content or said.reasoning:
            seen.began = True
        if choice.index == 0 and isinstance(said.content, str):
            seen.texts.append(said.content)
        for tool in said.tool_calls or ():
            if tool.id and tool.function is not None:
                seen.tools[tool.id] = tool.function.name or ""
                self._places[tool.index] = tool.id
            if tool.function is not None:
                self._arguments(tool.id or self._places.get(tool.index), tool.function.arguments)

    def _blocks(self, answer: _Answer) -> None:
        seen = self.seen
        delta = answer.delta
        if delta is not None and answer.type != "message_delta":
            seen.began = True
            if isinstance(delta, _Block):
                seen.texts.append(delta.text or "")
                self._arguments(self._places.get(answer.index), delta.partial_json)
            elif answer.type == "response.output_text.delta":
                seen.texts.append(delta)
        begun = answer.item if answer.type == "response.output_item.done" else answer.content_block
        if begun is not None:
            self._tool(begun, answer.index)
        if answer.type in ("message", None):  # a whole answer
            for block in [*(answer.content or ()), *(answer.output or ())]:
                self._tool(block, None, whole=True)
                seen.texts += [part.text or "" for part in (block, *(block.content or ())) if part.text]

    def _tool(self, block: _Block, place: int | None, *, whole: bool = False) -> None:
        if block.type in ("tool_use", "function_call"):
            self.seen.began = True
            identifier = block.call_id if self._path == RESPONSES else block.id
            if identifier:
                self.seen.tools[identifier] = block.name or ""
                self._places[place] = identifier
                # what opens a stream of the Anthropic API has an empty input
                given = bytes(block.input).decode() if whole and bytes(block.input) else block.arguments
                self._arguments(identifier, given)

    def _arguments(self, identifier: str | None, more: str | None) -> None:
        if identifier and more:
            self.seen.arguments.setdefault(identifier, []).append(more)
