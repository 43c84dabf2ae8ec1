"""Requests on their way to another server, read as far as the daemon needs to.

What an engine takes is its own business: fields are not checked here, and what is not understood is passed
on. Only what says whose a call is, and what is said in it, is looked at; the messages of all APIs are
brought into the form of the chat API for that, since identity compares them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, TypeGuard, TypeVar

import msgspec
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from agentsched.daemon.apis.reading import check_program
from agentsched.daemon.errors import ApiError, bad_field, invalid_json
from agentsched.daemon.talks import SECRET, Message, Transcript
from agentsched.daemon.upstream.bodies import NO_EDITS, Edits, is_accounting
from agentsched.engines.frontend import ChatRequest
from agentsched.engines.upstream.paths import CHAT, COMPLETIONS, MESSAGES, PATHS, RESPONSES

UNSTATED_OUTPUT_TOKENS = 1024
"""Taken to be meant where a request has no limit."""

_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
_SEEDS = {path: xxh3_64_intdigest(path.encode(), SECRET) for path in PATHS}
T = TypeVar("T")


_NOTHING = msgspec.Raw(b"null")


class Body(msgspec.Struct):
    """The fields that are looked at, of all APIs; others are skipped. Long histories are not read here."""

    model: Any = None
    stream: Any = None
    stream_options: Any = msgspec.UNSET
    messages: list[msgspec.Raw] | None = None
    system: Any = None
    prompt: Any = None
    input: msgspec.Raw = _NOTHING
    instructions: Any = None
    tools: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    program_id: Any = None
    metadata: Any = None
    nvext: Any = None
    session_id: Any = None
    session_params: Any = None
    priority: Any = None
    cache_salt: Any = None


class _Other(Body):
    """Of an API to which ``messages`` mean nothing."""

    messages: Any = None


_decode = msgspec.json.Decoder(Body).decode
_decode_others = msgspec.json.Decoder(_Other).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode
_SIGNALS = ("program_id", "metadata", "nvext", "session_id", "session_params")
_ADDED = ("session_id", "priority", "cache_salt")
_signals, _added = attrgetter(*_SIGNALS), attrgetter(*_ADDED)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request as the daemon sees it. ``chat`` has no messages: those are in the transcript. ``signals`` are
    the fields that may say whose it is; ``digest`` is equal for a retry to this process; ``edits`` is what
    has to be changed in the body; ``stated`` are those fields of its own in whose place others may be put."""

    path: str
    chat: ChatRequest
    signals: dict[str, Any]
    digest: bytes
    stream: bool
    max_output_tokens: int
    edits: Edits
    stated: dict[str, Any]


def read(path: str, data: bytes, *, care: bool) -> tuple[Asked, Transcript]:
    """``care``: drop what prefix care drops. Raises ``ApiError`` (400) for what is no JSON object."""
    body = _body(path, data)
    system = body.system
    accounting = care and path == MESSAGES and is_accounting(system)
    if accounting:
        system = system[1:]
    stream = body.stream is True
    if isinstance(body.program_id, str):
        check_program(body.program_id, "program_id")
    asked = Asked(
        path=path,
        chat=ChatRequest(
            model=str(body.model), messages=[], tools=body.tools if _are(body.tools, dict) else []
        ),
        signals=_stated(_SIGNALS, _signals(body)),
        digest=xxh3_64_digest(data, _SEEDS[path]),
        stream=stream,
        max_output_tokens=_limit(body),
        edits=_edits(path, body, stream=stream, accounting=accounting),
        stated=_stated(_ADDED, _added(body)),
    )
    return asked, _transcript(path, body, system)


def _stated(names: tuple[str, ...], values: tuple[Any, ...]) -> dict[str, Any]:
    """Those fields that the body has: none, mostly."""
    if values.count(None) == len(values):
        return {}
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _edits(path: str, body: Body, *, stream: bool, accounting: bool) -> Edits:
    if not (stream or accounting or body.program_id is not None):
        return NO_EDITS
    options = body.stream_options if isinstance(body.stream_options, dict) else {}
    silent = stream and path in (CHAT, COMPLETIONS) and not options.get("include_usage")
    return Edits(
        program_id=body.program_id is not None,
        accounting=accounting,
        usage=silent,
        options=options if silent and body.stream_options is not msgspec.UNSET else None,
    )


def _body(path: str, data: bytes) -> Body:
    try:
        try:
            return _decode(data)
        except msgspec.ValidationError as error:
            if "$.messages" not in str(error):
                raise
            if path in (CHAT, MESSAGES):
                raise bad_field("messages", "must be a list of objects") from None
            return _decode_others(data)
    except msgspec.ValidationError:
        raise ApiError(400, "the body must be a JSON object") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid_json(error) from None


def _limit(body: Body) -> int:
    for value in (body.max_completion_tokens, body.max_output_tokens, body.max_tokens):
        if isinstance(value, int) and value > 0:
            return value
    return UNSTATED_OUTPUT_TOKENS


def lasting_digest(path: str, data: bytes) -> bytes:
    """Equal for a retry, also to the next daemon."""
    found = hashlib.sha256(path.encode() + b"\n")
    found.update(data)
    return found.digest()[:16]


def _transcript(path: str, body: Body, system: Any) -> Transcript:
    """The messages of any API, in the form of the chat API once they are read."""
    if path == COMPLETIONS:
        text = body.prompt if isinstance(body.prompt, str) else msgspec.json.encode(body.prompt).decode()
        return Transcript((), _as_it_is, [{"role": "user", "content": text}])
    if path == RESPONSES:
        lead: list[Message] = [{"role": "system", "content": body.instructions}] if body.instructions else []
        begin = _begin(body.input)
        if begin == b'"':
            lead.append({"role": "user", "content": _said(body.input)})
        if begin == b"[":
            items = _list(body.input)
        elif begin in b'"n':
            items = []
        else:
            raise bad_field("input", "must be a string or a list of objects")
        return Transcript(items, _item, lead, path, "input")
    pieces = body.messages
    if pieces is None:
        raise bad_field("messages", "must be a list of objects")
    if path == CHAT:
        return Transcript(pieces, _as_it_is, kind=path)
    lead = [{"role": "system", "content": system}] if system else []
    return Transcript(pieces, _anthropic, lead, path)


def _said(value: msgspec.Raw) -> str:
    try:
        return _text(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_json(error) from None


def _begin(value: msgspec.Raw) -> bytes:
    """The first character, which says what a value is."""
    return bytes(memoryview(value)[:1])


def _as_it_is(message: Message) -> tuple[Message]:
    return (message,)


def _are(values: Any, kind: type[T]) -> TypeGuard[list[T]]:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _item(item: Message) -> Iterator[Message]:
    """An item of the responses API as messages."""
    kind = item.get("type", "message")
    if kind == "message":
        yield {"role": item.get("role"), "content": item.get("content")}
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        yield {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function}]}
    elif kind == "function_call_output":
        yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    elif kind not in _THOUGHTS:
        yield {"role": str(kind), "content": [item]}


def _anthropic(message: Message) -> Iterator[Message]:
    """A message of the Anthropic API in the form of the chat API: results of tools stand apart."""
    role, content = message.get("role"), message.get("content")
    if not _are(content, dict):
        yield message
        return
    parts: list[Message] = []
    calls = []
    for block in content:
        kind = block.get("type")
        if kind == "tool_result":
            if parts:
                yield {"role": role, "content": parts}
                parts = []
            identifier = block.get("tool_use_id")
            yield {"role": "tool", "tool_call_id": identifier, "content": block.get("content")}
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input")}
            calls.append({"id": block.get("id"), "function": function})
        elif kind not in _THOUGHTS:
            parts.append(block)
    if parts or calls:
        yield {"role": role, "content": parts} | ({"tool_calls": calls} if calls else {})
