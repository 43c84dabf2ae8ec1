"""Writes answers in the form of ``/v1/responses``: output items, each with its own run of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from agentsched.daemon.answers import Ending, Piece, ToolCall, Usage
from agentsched.daemon.apis.openai import error_body
from agentsched.daemon.errors import ApiError

# What clients expect to find again in the answer, and what it is if they did not say.
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
}


class WireTool(NamedTuple):
    """How a tool is called on the wire."""

    name: str
    namespace: str


class ResponseWriter:
    """See ``Writer``. ``asked`` is the request's body."""

    def __init__(
        self, call: str, created_unix_s: int, *, asked: dict[str, Any], wire_tools: dict[str, WireTool]
    ) -> None:
        self._call = call
        self._wire_tools = wire_tools
        self._head: dict[str, Any] = {
            "id": f"resp_{call}",
            "object": "response",
            "created_at": created_unix_s,
            "model": asked["model"],
            "error": None,
            "incomplete_details": None,
            "previous_response_id": None,
            "store": False,
        } | {name: asked.get(name) or default for name, default in _ECHOED.items()}
        self._items: list[dict[str, Any]] = []
        self._text: list[str] | None = None  # of the message that is being written
        self._events = 0

    def whole(self, pieces: Sequence[Piece], ending: Ending) -> bytes:
        for piece in pieces:
            self.piece(piece)
        self._close_text()
        return msgspec.json.encode(self._ended(ending))

    def begin(self, usage: Usage) -> bytes:
        return b"" if self._events else self.ping()

    def ping(self) -> bytes:
        """An event of its own: Codex gives up a stream on which only comments come."""
        opened = self._head | {"status": "in_progress", "output": [], "usage": None}
        first = b"" if self._events else self._event("response.created", response=opened)
        return first + self._event("response.in_progress", response=opened)

    def piece(self, piece: Piece) -> bytes:
        data = self._say(piece.text) if piece.text else b""
        for call in piece.tool_calls:
            data += self._close_text() + self._call_tool(call)
        return data

    def end(self, ending: Ending) -> bytes:
        data = self._close_text()
        ended = self._ended(ending)
        return data + self._event(f"response.{ended['status']}", response=ended)

    def fail(self, error: ApiError) -> bytes:
        told = error_body(error)["error"]
        failed = self._head | {"status": "failed", "output": self._items, "usage": None}
        failed["error"] = {"code": error.code or error.kind, "message": error.message}
        # Clients know no event before the one that opens the response.
        opened = b"" if self._events else self._event("response.created", response=failed)
        return opened + self._event("error", **told) + self._event("response.failed", response=failed)

    def _say(self, text: str) -> bytes:
        data = b""
        if self._text is None:
            self._text = []
            item = self._message("in_progress", [])
            data += self._event("response.output_item.added", output_index=len(self._items), item=item)
            data += self._of_text("response.content_part.added", part=_text_part(""))
        self._text.append(text)
        return data + self._of_text("response.output_text.delta", delta=text, logprobs=[])

    def _close_text(self) -> bytes:
        if self._text is None:
            return b""
        text, self._text = "".join(self._text), None
        data = self._of_text("response.output_text.done", text=text, logprobs=[])
        data += self._of_text("response.content_part.done", part=_text_part(text))
        return data + self._done(self._message("completed", [_text_part(text)]))

    def _call_tool(self, call: ToolCall) -> bytes:
        name, namespace = self._wire_tools.get(call.name, (call.name, None))
        item: dict[str, Any] = {
            "id": f"fc_{call.id.removeprefix('call_')}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": name,
            "arguments": call.arguments,
        } | ({"namespace": namespace} if namespace else {})
        at = {"output_index": len(self._items), "item_id": item["id"]}
        begun = item | {"status": "in_progress", "arguments": ""}
        data = self._event("response.output_item.added", output_index=len(self._items), item=begun)
        data += self._event("response.function_call_arguments.delta", delta=call.arguments, **at)
        data += self._event(
            "response.function_call_arguments.done", arguments=call.arguments, name=name, **at
        )
        return data + self._done(item)

    def _done(self, item: dict[str, Any]) -> bytes:
        index = len(self._items)
        self._items.append(item)
        return self._event("response.output_item.done", output_index=index, item=item)

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._call}_{len(self._items)}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _of_text(self, kind: str, **fields: Any) -> bytes:
        index = len(self._items)
        return self._event(
            kind, item_id=f"msg_{self._call}_{index}", output_index=index, content_index=0, **fields
        )

    def _ended(self, ending: Ending) -> dict[str, Any]:
        usage = ending.usage
        cut = ending.reason == "length"
        return self._head | {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._items,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.output_tokens,
            },
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._events} | fields
        # An error has a type of its own, and here the event's counts.
        body["type"] = kind
        self._events += 1
        return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(body) + b"\n\n"


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
