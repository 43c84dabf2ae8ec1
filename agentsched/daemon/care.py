"""Care for shared prefixes: what clients vary in their prompts, and what means nothing to the model.

Engines share the KV of equal beginnings of prompts, down to the first token that differs. A rule here
undoes one thing that a known client does for reasons of its own, where that stands before much that
would else be shared. The model is shown all that it was meant to see. ``docs/gateway.md`` describes each rule
for operators; each can be switched off.

What a rule gains is measured, not guessed: the prompt as it would be without the rule (``Change.without``)
tells up to where it could have been shared then, and the engine up to where it was.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import msgspec

from agentsched.engines.frontend import ChatRequest

Message = dict[str, Any]

BILLING = re.compile(r"x-anthropic-billing-header:(?: [\w-]+=[^;\s]*;)+\s*")


class Spellings:
    """The arguments of tool calls as the model wrote them, by id. Of at most ``limit_chars``: what
    was kept for longest goes first."""

    def __init__(self, limit_chars: int = 32_000_000) -> None:
        self._limit_chars = limit_chars
        self._chars = 0
        self._kept: OrderedDict[str, str] = OrderedDict()

    def keep(self, tool_call: str, arguments: str) -> None:
        self._kept[tool_call] = arguments
        self._chars += len(arguments)
        while self._chars > self._limit_chars:
            self._chars -= len(self._kept.popitem(last=False)[1])

    def get(self, tool_call: str) -> str | None:
        return self._kept.get(tool_call)


@dataclass(frozen=True, slots=True)
class Change:
    """A rule has changed a request. ``without`` is the request as this call would have been without it,
    while earlier calls were as they are. ``once``: that matters to a program's first call only, as every
    call of the program varies in the same way."""

    rule: str
    without: ChatRequest
    once: bool


Rule = Callable[[ChatRequest, Spellings], tuple[ChatRequest, Change] | None]


class PrefixCare:
    """Applies the rules, but for those in ``off``."""

    def __init__(self, off: Collection[str] = ()) -> None:
        self.off = off

    def tidy(self, chat: ChatRequest, spellings: Spellings) -> tuple[ChatRequest, list[Change]]:
        """The request as it shall be computed, and what was changed. ``spellings`` are its tenant's."""
        changes: list[Change] = []
        for name, rule in RULES.items():
            if name not in self.off and (done := rule(chat, spellings)) is not None:
                chat = done[0]
                changes.append(done[1])
        return chat, changes


def shared_tokens(one: list[int], other: list[int]) -> int:
    """How many tokens two prompts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _drop_billing_header(chat: ChatRequest, spellings: Spellings) -> tuple[ChatRequest, Change] | None:
    """Claude Code writes a line of accounting before its system prompt. It has a number that follows from
    the task, so that no two tasks would share any of the system prompt."""
    first = chat.messages[0] if chat.messages else {}
    parts = first.get("content")
    if first.get("role") != "system" or not isinstance(parts, list) or not parts:
        return None
    text = parts[0].get("text") if isinstance(parts[0], dict) else None
    if not isinstance(text, str) or not BILLING.fullmatch(text):
        return None
    tidy = _with_messages(chat, [first | {"content": parts[1:]}, *chat.messages[1:]])
    return tidy, Change("claude-code-header", chat, once=True)


def _restore_arguments(chat: ChatRequest, spellings: Spellings) -> tuple[ChatRequest, Change] | None:
    """Clients that parse the arguments of tool calls write them anew when they send the history back:
    with other spaces, other escapes, 1 for 1.0. The model's own spelling is what is in the cache."""
    messages = list(chat.messages)
    changed = []
    for index, message in enumerate(messages):
        if message.get("role") == "assistant" and message.get("tool_calls"):
            calls = [_restored(call, spellings) for call in message["tool_calls"]]
            if calls != message["tool_calls"]:
                messages[index] = message | {"tool_calls": calls}
                changed.append(index)
    if not changed:
        return None
    # Earlier turns were in the cache as the client writes them, had they been left alone from the start.
    without = list(messages)
    newest = max(i for i, message in enumerate(messages) if message.get("role") == "assistant")
    without[newest] = chat.messages[newest]
    return _with_messages(chat, messages), Change(
        "returned-arguments", _with_messages(chat, without), once=False
    )


RULES: dict[str, Rule] = {
    "claude-code-header": _drop_billing_header,
    "returned-arguments": _restore_arguments,
}


def _with_messages(chat: ChatRequest, messages: list[Message]) -> ChatRequest:
    return msgspec.structs.replace(chat, messages=messages)


def _restored(call: Any, spellings: Spellings) -> Any:
    if not isinstance(call, dict) or not isinstance(identifier := call.get("id"), str):
        return call
    function, own = call.get("function"), spellings.get(identifier)
    if own is None or not isinstance(function, dict) or function.get("arguments") == own:
        return call
    if not _same_value(function.get("arguments"), own):
        return call  # the client means something else now: that is what the model shall see
    return call | {"function": function | {"arguments": own}}


def _same_value(one: Any, other: str) -> bool:
    """Whether two JSON texts say the same, 1 and 1.0 being the same number."""
    if not isinstance(one, str):
        return False
    try:
        values = [json.loads(text, parse_int=float) for text in (one, other)]
    except (ValueError, RecursionError):
        return False
    # Compared as text, for which true is not 1.
    one, other = (json.dumps(value, sort_keys=True) for value in values)
    return bool(one == other)
