"""How models write tool calls: one format a family, to read, to write and to demand.

========== =========================================================== =====================
family     a call in an answer                                         ends with
========== =========================================================== =====================
ours       ``<|tool_call|>{"name": ..., "arguments": {...}}``          the next call, or the end
hermes     ``<tool_call>\\n{"name": ..., "arguments": {...}}\\n``      ``</tool_call>``
(Qwen)
llama      ``{"name": ..., "parameters": {...}}`` as the whole answer, the end
           or after ``<|python_tag|>``; there also ``NAME.call(key=value)``
mistral    ``[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]``   the end
mistral    ``[TOOL_CALLS]NAME[ARGS]{...}``                             the next call, or the end
(from v11)
========== =========================================================== =====================

Names in angle brackets with bars and in square brackets are special tokens; Qwen's marks may be plain
text. Arguments keep the spelling that the model gave them, so that an answer which comes back in a
prompt is the text that was emitted.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentsched.engines.embedded.tokenizer import TOOL_CALL
from agentsched.engines.frontend import ToolCallText

_ARGUMENTS = ("arguments", "parameters")
_SPELLED = re.compile(r'\{\s*"name"\s*:\s*"(?:[^"\\]|\\.)*"\s*,\s*"(?:arguments|parameters)"\s*:\s*')
_SEPARATOR = re.compile(r"\s*[;,]?\s*")
_decoder = json.JSONDecoder()

Parse = Callable[[str], list[ToolCallText] | None]
"""The calls that a text between marks is; None if it is malformed."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """``opening`` begins calls, ``closing`` ends them ("" : the answer's end does); ``inner`` are special
    tokens that may stand between. ``bare``: an answer that begins with ``{`` needs no opening mark.

    A call is written as ``before``, its name in JSON or, if ``plain_name``, as it is, ``between``, its
    arguments and ``after``; ``first``, ``separator`` and ``last`` are around all of them. ``newline``: a
    line break stands between text and calls, and is part of neither. ``single``: the model's template
    knows answers with one call only.
    """

    name: str
    parse: Parse
    opening: str
    before: str
    between: str
    after: str
    closing: str = ""
    inner: tuple[str, ...] = ()
    bare: bool = False
    plain_name: bool = False
    first: str = ""
    separator: str = ""
    last: str = ""
    newline: bool = False
    single: bool = False

    def spell(self, text: str, calls: Sequence[ToolCallText]) -> str:
        """An answer as the model writes it, special tokens by their names."""
        if not calls:
            return text
        # Where a mark can be left out, it is needed after a text.
        first = self.opening if self.bare and text else self.first
        written = (f"{self._head(call.name)}{call.arguments}{self.after}" for call in calls)
        return text + "\n" * (self.newline and bool(text)) + first + self.separator.join(written) + self.last

    def _head(self, name: str) -> str:
        return (
            f"{self.before}{name if self.plain_name else json.dumps(name, ensure_ascii=False)}{self.between}"
        )

    def grammar(
        self, tools: Mapping[str, Mapping[str, Any]], added: Mapping[str, int], *, parallel: bool
    ) -> str:
        """What an answer must follow that is calls of these tools (parameters' schemas by name); ``added``
        are the tokens that stand for a text as a whole."""
        several = parallel and not self.single
        calls = f"call ({self._lark(self.separator, added)} call)*" if several else "call"
        lines = [f"start: {self._lark(self.first, added)} {calls} {self._lark(self.last, added)}"]
        lines.append("call: " + " | ".join(f"call_{number}" for number in range(len(tools))))
        for number, (name, schema) in enumerate(tools.items()):
            head, tail = self._lark(self._head(name), added), self._lark(self.after, added)
            lines += [f"call_{number}: {head} arguments_{number} {tail}"]
            lines += [f"arguments_{number}: {json_rule(schema)}"]
        return "\n".join(lines)

    def _lark(self, text: str, added: Mapping[str, int]) -> str:
        """A literal in Lark notation, in which marks that are tokens go by their numbers."""
        marks = [mark for mark in (self.opening, self.closing, *self.inner) if mark in added]
        parts = re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]
        rendered = [
            f"<[{added[part]}]>" if part in marks else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        ]
        return " ".join(rendered) or '""'


def json_rule(schema: Mapping[str, Any]) -> str:
    """The Lark rule for JSON of this schema, spelled as templates spell it."""
    spelling = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return "%json " + json.dumps({**schema, "x-guidance": spelling})


# Reading


def _call_of(text: str) -> ToolCallText | None:
    """The call that a JSON object is."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments: Any = next((call[key] for key in _ARGUMENTS if key in call), {})
    if not isinstance(arguments, dict):
        return None
    if (head := _SPELLED.match(text)) and len(call) == 2:
        spelling = text[head.end() :].rstrip().removesuffix("}").rstrip()
        if _is_json(spelling, arguments):
            return ToolCallText(name=call["name"], arguments=spelling)
    return ToolCallText(name=call["name"], arguments=json.dumps(arguments, ensure_ascii=False))


def _is_json(text: str, value: Any) -> bool:
    try:
        return bool(json.loads(text) == value)
    except ValueError:
        return False


def _one(text: str) -> list[ToolCallText] | None:
    call = _call_of(text.strip())
    return None if call is None else [call]


def _values(text: str) -> Iterator[str]:
    """The texts of the JSON values that stand one after another. Raises ``ValueError``."""
    at = 0
    while at < len(text):
        end = _decoder.raw_decode(text, at)[1]
        yield text[at:end]
        separator = _SEPARATOR.match(text, end)
        at = separator.end() if separator else end


def _several(text: str) -> list[ToolCallText] | None:
    try:
        calls = [_call_of(one) for one in _values(text)]
    except (ValueError, RecursionError):
        return None
    known = [call for call in calls if call is not None]
    return known if known and len(known) == len(calls) else None


def _llama(text: str) -> list[ToolCallText] | None:
    text = text.strip()
    return _several(text) if text.startswith("{") else _written_as_code(text)


def _written_as_code(text: str) -> list[ToolCallText] | None:
    """Llama's own tools are called as ``NAME.call(key="value")``."""
    try:
        call = ast.parse(text, mode="eval").body
        match call:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="call"), args=[], keywords=given):
                arguments = {str(item.arg): ast.literal_eval(item.value) for item in given if item.arg}
                spelling = json.dumps(arguments, ensure_ascii=False)
                return [ToolCallText(name=name, arguments=spelling)]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    return None


def _mistral(text: str) -> list[ToolCallText] | None:
    text = text.strip()
    if text.startswith("["):
        return _several(text[1:-1].strip()) if text.endswith("]") else None
    name, _, arguments = text.partition("[ARGS]")
    name = name.partition("[CALL_ID]")[0].strip()
    if not name or not _is_object(arguments):
        return None
    return [ToolCallText(name=name, arguments=arguments.strip())]


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


# The families

_NAME, _VALUE = '{"name": ', ', "arguments": '
OURS = ToolFormat("ours", _one, TOOL_CALL, TOOL_CALL + _NAME, _VALUE, "}")
HERMES = ToolFormat(
    "hermes",
    _one,
    "<tool_call>",
    "<tool_call>\n" + _NAME,
    _VALUE,
    "}\n</tool_call>",
    closing="</tool_call>",
    separator="\n",
    newline=True,
)
LLAMA = ToolFormat(
    "llama", _llama, "<|python_tag|>", _NAME, ', "parameters": ', "}", bare=True, separator="; ", single=True
)
MISTRAL = ToolFormat(
    "mistral", _mistral, "[TOOL_CALLS]", _NAME, _VALUE, "}", first="[TOOL_CALLS][", separator=", ", last="]"
)
MISTRAL_SPACED = ToolFormat(
    "mistral", _mistral, "[TOOL_CALLS]", _NAME, _VALUE, "}", first="[TOOL_CALLS] [", separator=", ", last="]"
)
MISTRAL_ARGS = ToolFormat(
    "mistral-args",
    _mistral,
    "[TOOL_CALLS]",
    "[TOOL_CALLS]",
    "[ARGS]",
    "",
    inner=("[ARGS]", "[CALL_ID]"),
    plain_name=True,
)


def tool_format(template: str, specials: Mapping[str, int]) -> ToolFormat | None:
    """The format that a chat template shows models, told by its marks; None if it is none of ours."""
    if "tools" not in template and "tool_calls" not in template:
        return None
    if TOOL_CALL in specials:
        return OURS
    if "[TOOL_CALLS]" in specials:
        if "[ARGS]" in template:
            return MISTRAL_ARGS
        return MISTRAL_SPACED if "[TOOL_CALLS] " in template else MISTRAL
    # Qwen's coders have other marks between these.
    if "<tool_call>" in template:
        return HERMES if "<function=" not in template else None
    return LLAMA if "<|python_tag|>" in specials else None
