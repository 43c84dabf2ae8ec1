"""Text in and out of the embedded engine: a model folder's template, tokenizer and tool calls.

KV that a call leaves behind is an exact prefix of its program's next prompt wherever the model's template
writes the answer as it was emitted; ``docs/models.md`` says where templates do not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from agentsched.engines.contract import RequestRefused
from agentsched.engines.embedded.answers import AnswerDecoder
from agentsched.engines.embedded.grammar import grammar_fault
from agentsched.engines.embedded.preset import CONFIG
from agentsched.engines.embedded.recorded import RecordedTurn, Scripts
from agentsched.engines.embedded.template import ChatTemplate
from agentsched.engines.embedded.tokens import ModelTokenizer, read_json
from agentsched.engines.embedded.tool_formats import json_rule, tool_format
from agentsched.engines.frontend import ChatRequest, Prepared, ToolCallText

RECORDED = "recorded/"
# What configs mean that do not say (transformers leaves out what is a family's default).
_LARGEST_DEFAULT = 131_072


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
        self._max_context = _max_context(folder)
        self._tokenizer = ModelTokenizer(folder)
        self._template = ChatTemplate(folder, self._tokenizer)
        self._format = tool_format(self._template.source, self._tokenizer.specials)
        if self._scripts and self._format is None:
            raise ValueError(f"{folder}: its chat template has no tool calls, which recorded agents make")

    def models(self) -> list[str]:
        return [self._name, *(RECORDED + script for script in sorted(self._scripts))]

    def decoder(self, prepared: Prepared) -> AnswerDecoder:
        form = self._format if prepared.tool_calls else None
        return AnswerDecoder(self._tokenizer, prepared.prompt, form, single=prepared.single_tool_call)

    def prepare(self, request: ChatRequest) -> Prepared:
        """See ``Frontend.prepare``. A recorded answer is cut at ``max_output_tokens``, as a sampled one."""
        try:
            return self._prepare(request)
        except RecursionError as error:
            raise RequestRefused("the request is nested too deeply") from error

    def _prepare(self, request: ChatRequest) -> Prepared:
        turns = self._turns(request.model)
        if turns is not None and request.logprobs is not None:
            raise RequestRefused("logprobs: a recorded answer has none")
        tools = self._tools(request)
        sampling = request.sampling(
            self._default_output if turns is None else self._max_context,
            grammar=self._grammar(request, tools) if turns is None else "",
            stop_tokens=self._tokenizer.ends,
        )
        text, prompt = self._prompt(request)
        room = self._max_context - len(prompt)
        if room < 1:
            raise self._too_long()
        recorded = whole = None
        if turns is not None:
            answered = sum(message.get("role") == "assistant" for message in request.messages)
            turn = turns[min(answered, len(turns) - 1)]
            whole = self._answer(text, prompt, turn)
            recorded = whole[: request.max_output_tokens or room][:room]
        return Prepared(
            prompt=prompt,
            sampling=msgspec.structs.replace(
                sampling, max_output_tokens=min(room, sampling.max_output_tokens)
            ),
            recorded=recorded,
            recorded_cut=recorded != whole,
            tool_calls=bool(tools) or turns is not None,
            single_tool_call=not request.parallel_tool_calls,
        )

    def _prompt(self, request: ChatRequest) -> tuple[str, list[int]]:
        """In text, where there is any, and in tokens."""
        if isinstance(request.prompt, list):
            return "", request.prompt
        clean = self._tokenizer.as_text
        if request.prompt is None:
            text = self._template.render(request.messages, request.tools, clean)
        else:
            text = clean(request.prompt)
        if not self._tokenizer.fits(text, self._max_context):
            raise self._too_long()
        return text, list(islice(self._tokenizer.encode_prompt(text), self._max_context))

    def _turns(self, model: str) -> Sequence[RecordedTurn] | None:
        name = model.removeprefix("openai/")
        if name == self._name:
            return None
        turns = self._scripts.get(name.removeprefix(RECORDED)) if name.startswith(RECORDED) else None
        if turns is None:
            raise RequestRefused(f"model: {model!r} is not served; served are {', '.join(self.models())}")
        return turns

    # Tools and grammars

    def _tools(self, request: ChatRequest) -> dict[str, dict[str, Any]]:
        """The schemas of the offered tools' parameters, by name."""
        tools: dict[str, dict[str, Any]] = {}
        for index, tool in enumerate(request.tools):
            function = tool.get("function", tool)
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise RequestRefused(f"tools[{index}].function.name: must be a string")
            schema = function.get("parameters") or {"type": "object"}
            if not isinstance(schema, dict):
                raise RequestRefused(f"tools[{index}].function.parameters: must be a JSON schema")
            tools[function["name"]] = schema
        if tools and self._format is None:
            raise RequestRefused("tools: this model's chat template has no tool calls that are known here")
        return tools

    def _grammar(self, request: ChatRequest, tools: dict[str, dict[str, Any]]) -> str:
        """What the answer must follow, in Lark; "" if it is free."""
        if request.response_format is not None:
            field, rules = "response_format", f"start: {json_rule(_schema(request.response_format))}"
            if tools:
                raise RequestRefused("response_format: goes with tools only where tool_choice is 'none'")
        elif request.tool_choice != "auto" and self._format is not None:
            field, name = "tool_choice", request.tool_choice.removeprefix("tool:")
            named = {tool: schema for tool, schema in tools.items() if tool == name}
            chosen = tools if request.tool_choice == "required" else named
            if not chosen:
                raise RequestRefused(f"tool_choice: {name!r} asks for a tool that the request does not have")
            added = self._tokenizer.added
            rules = self._format.grammar(chosen, added, parallel=request.parallel_tool_calls)
        else:
            return ""
        if fault := grammar_fault(rules):
            raise RequestRefused(f"{field}: its JSON schema cannot be followed: {fault}")
        return rules

    # Recorded answers

    def _answer(self, text: str, prompt: list[int], turn: RecordedTurn) -> list[int]:
        """A recorded turn as the tokens that it is when it comes back in a prompt."""
        assert self._format is not None
        clean, tokenizer = self._tokenizer.as_text, self._tokenizer
        arguments = clean(json.dumps({"command": turn.command}))
        said = self._format.spell(clean(turn.thought), [ToolCallText(name=self._tool, arguments=arguments)])
        if tokenizer.end is not None:
            said += tokenizer.name(tokenizer.end)
        whole = list(tokenizer.encode_prompt(text + said))
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        return list(tokenizer.encode_prompt(said, inner=True))

    def _too_long(self) -> RequestRefused:
        return RequestRefused(
            f"messages: the prompt has {self._max_context:,} tokens or more and leaves no room for output "
            f"in the model's context of {self._max_context:,} tokens"
        )


def _max_context(folder: Path) -> int:
    """The most that a prompt may have. The engine may have less room, which the gateway knows."""
    stated = read_json(folder / CONFIG).get("max_position_embeddings", _LARGEST_DEFAULT)
    if not isinstance(stated, int) or stated < 1:
        raise ValueError(f"{folder / CONFIG}: max_position_embeddings must be a whole number >= 1")
    return stated


def _schema(response_format: dict[str, Any]) -> dict[str, Any]:
    kind = response_format.get("type")
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise RequestRefused("response_format.type: must be 'text', 'json_object' or 'json_schema'")
    described = response_format.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise RequestRefused("response_format.json_schema.schema: must be a JSON schema")
    return schema
