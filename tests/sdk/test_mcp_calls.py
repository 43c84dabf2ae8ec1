"""Tool calls are read out of what MCP clients and servers say, whatever else they say."""

import json
from typing import Any

import pytest

from agentsched.sdk import program, tool_call
from agentsched.sdk.mcp import call_meta
from agentsched.sdk.mcp_calls import Call, Calls
from tests.sdk.recording import Recording


class Told:
    """What is reported, as a list."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.said: list[Any] = []

    def begin(self, call: Call) -> "One":
        self.calls.append(call)
        return One(self, call.tool_call)


class One:
    def __init__(self, told: Told, tool_call: str) -> None:
        self.told, self.tool_call = told, tool_call

    def progress(self, done_fraction: float | None) -> None:
        self.told.said.append((self.tool_call, "progress", done_fraction))

    def end(self, exit_status: int) -> None:
        self.told.said.append((self.tool_call, "end", exit_status))


@pytest.fixture
def told() -> Told:
    return Told()


def line(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0"} | message).encode()


def asked(number: int | str, tool: str = "search", **meta: Any) -> bytes:
    return line(id=number, method="tools/call", params={"name": tool, "arguments": {}, "_meta": meta})


def test_a_call_begins_and_ends_with_its_answer(told: Told) -> None:
    calls = Calls(told.begin, "p-1", "server")
    calls.sent(line(id=1, method="initialize", params={}))
    calls.answered(line(id=1, result={}))
    calls.sent(asked(2, "search"))
    calls.sent(asked("3", "fetch", **{"agentsched/hint": "memory:2G"}))
    calls.answered(line(id=9, result={}))
    calls.answered(line(id="3", result={"content": [], "isError": True}))
    calls.answered(line(id=2, result={"content": []}))
    calls.answered(line(id=2, result={"content": []}))
    assert [(c.tool, c.program, c.expected_memory_bytes, c.said) for c in told.calls] == [
        ("search", "p-1", 0, False),
        ("fetch", "p-1", 2 << 30, False),
    ]
    assert told.said == [("server-2", "end", 1), ("server-1", "end", 0)]
    assert calls.running == 0


def test_whose_call_it_is_comes_with_it(told: Told, daemon: Recording) -> None:
    calls = Calls(told.begin, "p-of-all", "server")
    with program("p", id="p-2"), tool_call("call_5"):
        calls.sent(asked(1, **call_meta("time:30s")))
    calls.sent(asked(2, **{"claudecode/toolUseId": "toolu_1"}))
    assert [(c.program, c.tool_call, c.said) for c in told.calls] == [
        ("p-2", "call_5", True),
        ("p-of-all", "toolu_1", True),
    ]
    assert call_meta() == {}


def test_progress_errors_cancellations_and_the_end_of_the_server(told: Told) -> None:
    calls = Calls(told.begin, "p", "s")
    for number in (1, 2, 3):
        calls.sent(asked(number, progressToken=f"t{number}"))
    calls.answered(
        line(method="notifications/progress", params={"progressToken": "t1", "progress": 1, "total": 4})
    )
    calls.answered(
        line(method="notifications/progress", params={"progressToken": "t1", "progress": 5, "total": 4})
    )
    calls.answered(line(method="notifications/progress", params={"progressToken": "t2", "progress": 2}))
    calls.answered(line(id=1, error={"code": -32602, "message": "no"}))
    calls.sent(line(method="notifications/cancelled", params={"requestId": 2}))
    calls.answered(line(id=2, result={}))
    calls.end()
    assert told.said == [("s-1", "progress", 0.25), ("s-1", "end", 1), ("s-2", "end", 130), ("s-3", "end", 1)]


@pytest.mark.parametrize(
    "odd",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[1, null, []]",
        b'{"method": "tools/call"}',
        b'{"id": null, "method": "tools/call", "params": []}',
        b'{"id": true, "method": "tools/call", "params": {}}',
        b'{"method": "notifications/progress", "params": {"progressToken": {}}}',
        b'{"id": {}, "result": 1}',
    ],
)
def test_odd_lines_say_nothing(odd: bytes, told: Told) -> None:
    calls = Calls(told.begin, "p")
    calls.sent(odd)
    calls.answered(odd)
    assert (told.calls, told.said) == ([], [])


def test_batches_and_odd_fields_of_calls_are_read(told: Told) -> None:
    calls = Calls(told.begin, "p", "s")
    calls.sent(
        b'[{"id": 1, "method": "tools/call", "params": {"name": 5, "_meta": {"agentsched/program": ""}}}]'
    )
    calls.answered(b'[{"id": 1, "result": null}]')
    assert [(c.tool, c.program) for c in told.calls] == [("?", "p")]
    assert told.said == [("s-1", "end", 0)]
