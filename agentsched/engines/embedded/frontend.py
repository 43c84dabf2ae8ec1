"""Text in and out of the embedded engine: our chat template, recorded answers, tool calls.

The template, where ``<|...|>`` are special tokens and each message ends with ``<|end|>``::

    <|system|>  tool definitions, one JSON document a line (only if there are tools)
    <|system|>  text
    <|user|>    text
    <|assistant|> text  <|tool_call|> {"name": ..., "arguments": ...}  (any number of tool calls)
    <|tool|>    text of one tool call's result

Ids of tool calls are not rendered, so that equal runs have equal prompts. Each text between special
tokens is encoded by itself: an answer is the same tokens when it comes back in the next prompt as
when it was emitted, so KV left behind by a call is an exact prefix of the program's next prompt.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from agentsched.engines.contract import RequestRefused, Sampling
from agentsched.engines.embedded.answers import AnswerDecoder, call_text
from agentsched.engines.embedded.preset import CONFIG, TOKENIZER
from agentsched.engines.embedded.tokenizer import ASSISTANT, END, SYSTEM, TOOL, TOOL_CALL, USER
from agentsched.engines.frontend import ChatRequest, Prepared

RECORDED = "recorded/"
_ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL}
# Texts remembered in tokens: some 30 messages each of 100 programs, 4 bytes a token.
_REMEMBERED_TEXTS = 4096


class RecordedTurn(msgspec.Struct, frozen=True):
    """One answer of a recorded agent: what it thinks, and the command it gives to its tool."""

    thought: str
    command: str


Scripts = Mapping[str, Sequence[RecordedTurn]]


def load_scripts(folder: Path) -> dict[str, list[RecordedTurn]]:
    """Recorded agents from ``<folder>/<script>/turns.json``. Raises ``ValueError`` naming a bad file."""
    scripts: dict[str, list[RecordedTurn]] = {}
    for path in sorted(folder.glob("*/turns.json")):
        try:
            turns = msgspec.json.decode(path.read_bytes(), type=list[RecordedTurn])
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}: {error}") from error
        if not turns:
            raise ValueError(f"{path}: no turns")
        scripts[path.parent.name] = turns
    return scripts


class ChatFrontend:
    """``agentsched.engines.frontend.Frontend`` of a model folder, with recorded answers."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "demo",
        scripts: Scripts | None = None,
        tool: str = "bash",
        default_output_tokens: int = 1024,
    ) -> None:
        """``name`` is the model's; recorded commands are calls of ``tool``. An answer without a limit
        of its own ends after ``default_output_tokens``. Raises ``OSError`` or ``ValueError`` if the
        folder cannot be read."""
        self._name, self._tool, self._default_output = name, tool, default_output_tokens
        self._scripts = dict(scripts or {})
        self._max_context = int(json.loads((folder / CONFIG).read_bytes())["max_position_embeddings"])
        self._tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text("utf-8"))
        # A special token's name inside a text is text: nobody can forge a message by writing it.
        self._tokenizer.encode_special_tokens = True
        self._ids = {special: self._special(special) for special in (*_ROLES.values(), TOOL_CALL, END)}
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))
        self._encode = lru_cache(maxsize=_REMEMBERED_TEXTS)(self._encode_now)

    def models(self) -> list[str]:
        return [self._name, *(RECORDED + script for script in sorted(self._scripts))]

    def decoder(self) -> AnswerDecoder:
        return AnswerDecoder(self._tokenizer, self._ids[TOOL_CALL], self._ids[END])

    def prepare(self, request: ChatRequest) -> Prepared:
        """See ``Frontend.prepare``. A recorded answer is cut at ``max_output_tokens``, as a sampled one."""
        turns = self._turns(request.model)
        _check_sampling(request)
        prompt = list(islice(self._render(request), self._max_context))
        room = self._max_context - len(prompt)
        if room < 1:
            raise self._too_long()
        limit = min(room, request.max_output_tokens or self._default_output)
        whole = recorded = None
        if turns is not None:
            answered = sum(message.get("role") == "assistant" for message in request.messages)
            limit = min(room, request.max_output_tokens or room)
            whole = self._answer(turns[min(answered, len(turns) - 1)])
            recorded = whole[:limit]
        sampling = Sampling(
            max_output_tokens=limit,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop_tokens=(self._ids[END],),
        )
        return Prepared(prompt=prompt, sampling=sampling, recorded=recorded, recorded_cut=recorded != whole)

    def _turns(self, model: str) -> Sequence[RecordedTurn] | None:
        name = model.removeprefix("openai/")
        if name == self._name:
            return None
        turns = self._scripts.get(name.removeprefix(RECORDED)) if name.startswith(RECORDED) else None
        if turns is None:
            raise RequestRefused(f"model: {model!r} is not served; served are {', '.join(self.models())}")
        return turns

    def _render(self, request: ChatRequest) -> Iterator[int]:
        if request.prompt is not None:
            yield from self._encode(request.prompt) if isinstance(request.prompt, str) else request.prompt
            return
        if not request.messages:
            raise RequestRefused("messages: must not be empty")
        end = self._ids[END]
        if request.tools:
            yield self._ids[SYSTEM]
            definitions = (
                json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in request.tools
            )
            yield from self._encode("\n".join(definitions))
            yield end
        for index, message in enumerate(request.messages):
            role = message.get("role")
            if role not in _ROLES:
                raise RequestRefused(
                    f"messages[{index}].role: {role!r} is not one of {', '.join(map(repr, _ROLES))}"
                )
            yield self._ids[_ROLES[role]]
            yield from self._body(_text(message, index), _calls(message, index))
            yield end
        yield self._ids[ASSISTANT]

    def _body(self, text: str, calls: Sequence[str]) -> Iterator[int]:
        yield from self._encode(text)
        for call in calls:
            yield self._ids[TOOL_CALL]
            yield from self._encode(call)

    def _answer(self, turn: RecordedTurn) -> list[int]:
        call = call_text(self._tool, json.dumps({"command": turn.command}))
        return [*self._body(turn.thought, [call]), self._ids[END]]

    def _too_long(self) -> RequestRefused:
        return RequestRefused(
            f"messages: the prompt has {self._max_context:,} tokens or more and leaves no room for output "
            f"in the model's context of {self._max_context:,} tokens"
        )

    def _encode_now(self, text: str) -> array[int]:
        # Known without encoding, which takes a second a megabyte while all others wait.
        if len(text) > self._max_context * self._longest_token:
            raise self._too_long()
        # JSON can carry half a surrogate pair, which no UTF-8 can: such a character is replaced.
        valid = text.encode("utf-8", "replace").decode("utf-8")
        return array("I", self._tokenizer.encode(valid, add_special_tokens=False).ids)

    def _special(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"{TOKENIZER} lacks the special token {token!r}")
        return int(number)


def _check_sampling(request: ChatRequest) -> None:
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        raise RequestRefused(f"max_tokens: must be >= 1, got {request.max_output_tokens}")
    if not request.temperature >= 0:
        raise RequestRefused(f"temperature: must be >= 0, got {request.temperature}")
    if not 0 < request.top_p <= 1:
        raise RequestRefused(f"top_p: must be in (0, 1], got {request.top_p}")


def _text(message: dict[str, Any], index: int) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    field = f"messages[{index}].content"
    if not isinstance(content, list):
        raise RequestRefused(f"{field}: must be a string, null or a list of text parts")
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise RequestRefused(f"{field}[{number}]: only parts of type 'text' are served")
        texts.append(part["text"])
    return "".join(texts)


def _calls(message: dict[str, Any], index: int) -> list[str]:
    if message["role"] != "assistant":
        return []
    rendered = []
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestRefused(f"messages[{index}].tool_calls[{number}].function.name: must be a string")
        arguments = function.get("arguments")
        # The text as the client sends it, unparsed: it is what the model emitted.
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        rendered.append(call_text(function["name"], text))
    return rendered
