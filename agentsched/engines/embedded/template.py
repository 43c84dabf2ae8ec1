"""Chat templates: a model folder's own Jinja template, over messages in the OpenAI form.

What depends on the client and not on the conversation is kept out of prompts, so that equal runs have
equal prompts: unknown keys of messages, and ids of tool calls, which are numbered instead. Arguments of
tool calls keep the spelling that the model gave them.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentsched.engines.contract import RequestRefused
from agentsched.engines.embedded.preset import CHAT_TEMPLATE
from agentsched.engines.embedded.tokens import ModelTokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")

Cleaner = Callable[[str], str]


class SpelledObject(dict[str, Any]):
    """A JSON object that is written as the model spelled it."""

    def __init__(self, spelling: str, value: Mapping[str, Any]) -> None:
        super().__init__(value)
        self.spelling = spelling


class ChatTemplate:
    """The template of a model folder. ``source`` is its text."""

    def __init__(self, folder: Path, tokenizer: ModelTokenizer) -> None:
        """Raises ``OSError`` or ``ValueError`` if there is none or it cannot be read."""
        self.source, with_tools = _sources(folder, tokenizer.settings)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._plain = environment.from_string(self.source)
            self._with_tools = environment.from_string(with_tools)
        except TemplateError as error:
            raise ValueError(f"{folder}: its chat template is broken: {error}") from error
        self.source += with_tools
        self._names = {name: tokenizer.setting(name) or "" for name in _NAMED_TOKENS}

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], clean: Cleaner
    ) -> str:
        """The prompt in text, up to where the answer begins; ``clean`` is applied to all that clients
        say. Raises ``RequestRefused`` naming the field at fault."""
        if not messages:
            raise RequestRefused("messages: must not be empty")
        ids: dict[str, str] = {}
        said = [self._message(message, index, ids, clean) for index, message in enumerate(messages)]
        offered = [_cleaned(tool, clean) for tool in tools]
        template = self._with_tools if offered else self._plain
        try:
            return template.render(
                messages=said, tools=offered or None, add_generation_prompt=True, **self._names
            )
        except Exception as error:  # templates are programs, and say in their own ways what they refuse
            problem = f"the model's chat template refuses them: {error}"
            raise RequestRefused(f"messages: {problem}") from error

    def _message(
        self, message: dict[str, Any], index: int, ids: dict[str, str], clean: Cleaner
    ) -> dict[str, Any]:
        role, place = message.get("role"), f"messages[{index}]"
        if role not in ROLES:
            raise RequestRefused(f"{place}.role: {role!r} is not one of {', '.join(map(repr, ROLES))}")
        if role == "developer" and "developer" not in self.source:
            role = "system"
        said = {"role": role, "content": clean(_text(message, place))}
        if role == "assistant":
            if calls := [
                _call(call, f"{place}.tool_calls[{number}]", ids, clean)
                for number, call in enumerate(message.get("tool_calls") or ())
            ]:
                said["tool_calls"] = calls
            if isinstance(reasoning := message.get("reasoning_content"), str):
                said["reasoning_content"] = clean(reasoning)
        elif role == "tool":
            said["tool_call_id"] = _numbered(message.get("tool_call_id"), ids)
        return said


def _sources(folder: Path, settings: Mapping[str, Any]) -> tuple[str, str]:
    """The template, and the one for requests with tools, often the same."""
    path = folder / CHAT_TEMPLATE
    found = path.read_text("utf-8") if path.exists() else settings.get("chat_template")
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found}
        found, with_tools = named.get("default"), named.get("tool_use", named.get("default"))
    else:
        with_tools = found
    if not isinstance(found, str) or not isinstance(with_tools, str):
        raise ValueError(
            f"{folder}: has no chat template ({CHAT_TEMPLATE}, or chat_template in tokenizer_config.json)"
        )
    return found, with_tools


def _text(message: Mapping[str, Any], place: str) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestRefused(f"{place}.content: must be a string, null or a list of text parts")
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise RequestRefused(f"{place}.content[{number}]: only parts of type 'text' are served")
        texts.append(part["text"])
    return "".join(texts)


def _call(call: Any, place: str, ids: dict[str, str], clean: Cleaner) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestRefused(f"{place}.function.name: must be a string")
    arguments = function.get("arguments") or {}
    # The text as the client sends it: it is what the model emitted.
    spelling = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    try:
        value = json.loads(spelling)
    except ValueError as error:
        raise RequestRefused(f"{place}.function.arguments: must be JSON ({error})") from error
    if not isinstance(value, dict):
        raise RequestRefused(f"{place}.function.arguments: must be a JSON object")
    spelled = SpelledObject(clean(spelling), _cleaned(value, clean))
    return {
        "type": "function",
        "id": _numbered(call.get("id"), ids),
        "function": {"name": clean(function["name"]), "arguments": spelled},
    }


def _numbered(identity: Any, ids: dict[str, str]) -> str:
    """Nine digits, which is a form that all templates take."""
    return ids.setdefault(str(identity), f"{len(ids):09d}")


def _cleaned(value: Any, clean: Cleaner) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(item, clean) for item in value]
    if isinstance(value, dict):
        return {clean(str(key)): _cleaned(item, clean) for key, item in value.items()}
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, it escapes nothing for HTML."""
    if isinstance(value, SpelledObject):
        return value.spelling
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
