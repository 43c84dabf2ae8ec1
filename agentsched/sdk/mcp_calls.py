"""Tool calls in what a client and a server of the Model Context Protocol say to each other.

Pure reading of JSON-RPC messages, one a line as its stdio transport has them: ``Calls.sent`` takes those of
the client, ``Calls.answered`` those of the server. What follows is reported: a ``tools/call`` begins a tool
run, its response ends it (with status 1 if it is an error or has ``isError``), ``notifications/cancelled``
ends it as interrupted, ``notifications/progress`` with its token tells how far it is. All other messages, and
lines that are none, say nothing here.

Whose call it is, the first that is there: ``agentsched/program`` in the call's ``_meta`` (``mcp.call_meta``
makes it), the program that was given, or what the daemon knows of the id of the model's tool call, which is
read from ``_meta`` too (``TOOL_CALL_KEYS``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeGuard

import msgspec

from agentsched.sdk.mcp import MCP_PROGRAM, MCP_TOOL_CALL, hint_of
from agentsched.sdk.tool_runs import FAILED, INTERRUPTED

TOOL_CALL_KEYS = (MCP_TOOL_CALL, "claudecode/toolUseId")
"""Under which clients say the id of the model's tool call in ``_meta``."""


class Reported(Protocol):
    """One run's reports (``tool_runs.Run``)."""

    def progress(self, done_fraction: float | None) -> None: ...

    def end(self, exit_status: int) -> None: ...


class Call(NamedTuple):
    """A ``tools/call``. ``program`` is "" where only the id of the tool call may tell it, and ``said``
    whether that id is the model's."""

    tool: str
    tool_call: str
    program: str
    said: bool
    expected_memory_bytes: int


Begin = Callable[[Call], Reported | None]


class Calls:
    """Those of one connection. ``begin``: reports that a call began; None: nobody can be told of it.
    ``server``: what stands in ids of calls that nobody gave one."""

    def __init__(self, begin: Begin, program: str = "", server: str = "mcp") -> None:
        self._begin = begin
        self._program = program
        self._server = server
        self._numbers = itertools.count(1)
        self._running: dict[str | int, Reported] = {}
        self._tokens: dict[str | int, Reported] = {}

    @property
    def running(self) -> int:
        """How many are reported as running."""
        return len(self._running)

    def sent(self, line: bytes) -> None:
        """A line from the client."""
        for message in _messages(line):
            params = _mapping(message.get("params"))
            if message.get("method") == "notifications/cancelled":
                self._end(params.get("requestId"), INTERRUPTED)
            elif message.get("method") == "tools/call" and _is_id(message.get("id")):
                self._called(message["id"], params)

    def answered(self, line: bytes) -> None:
        """A line from the server."""
        for message in _messages(line):
            if message.get("method") == "notifications/progress":
                self._progressed(_mapping(message.get("params")))
            elif "method" not in message and ("result" in message or "error" in message):
                failed = "error" in message or _mapping(message["result"]).get("isError") is True
                self._end(message.get("id"), FAILED if failed else 0)

    def end(self) -> None:
        """The server is gone: what still runs failed."""
        for number in list(self._running):
            self._end(number, FAILED)

    def _called(self, number: str | int, params: Mapping[str, Any]) -> None:
        meta = _mapping(params.get("_meta"))
        said = next((value for key in TOOL_CALL_KEYS if _is_name(value := meta.get(key))), None)
        stated = meta.get(MCP_PROGRAM)
        hint = hint_of(params)
        call = Call(
            tool=params["name"] if _is_name(params.get("name")) else "?",
            tool_call=said or f"{self._server}-{next(self._numbers)}",
            program=stated if _is_name(stated) else self._program,
            said=said is not None,
            expected_memory_bytes=(hint.memory_bytes or 0) if hint else 0,
        )
        run = self._begin(call)
        if run is not None:
            self._running[number] = run
            if _is_id(token := meta.get("progressToken")):
                self._tokens[token] = run

    def _progressed(self, params: Mapping[str, Any]) -> None:
        token, progress, total = (params.get(name) for name in ("progressToken", "progress", "total"))
        run = self._tokens.get(token) if _is_id(token) else None
        if run is None or not isinstance(progress, int | float) or not isinstance(total, int | float):
            return
        if 0 <= progress <= total and total > 0:
            run.progress(progress / total)

    def _end(self, number: Any, exit_status: int) -> None:
        run = self._running.pop(number, None) if _is_id(number) else None
        if run is not None:
            self._tokens = {token: other for token, other in self._tokens.items() if other is not run}
            run.end(exit_status)


def _messages(line: bytes) -> Iterator[Mapping[str, Any]]:
    """Of a line: one, or several in a batch."""
    try:
        read = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    for message in read if isinstance(read, list) else [read]:
        if isinstance(message, Mapping):
            yield message


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_id(value: Any) -> TypeGuard[str | int]:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value != ""
