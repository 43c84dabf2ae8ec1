"""Events that agents and sandboxes post."""

from __future__ import annotations

from typing import Any

import pytest

from tests.daemon.serving import Served, served

FINISHED = {
    "event": "ToolFinished",
    "exit_status": 0,
    "wall_s": 1.5,
    "cpu_s": 0.5,
    "peak_memory_bytes": 1000,
}


async def tool_call_of(served_: Served) -> tuple[str, str]:
    """A tool call that the daemon minted, and its program."""
    _, body, headers = await served_.chat("/call bash {}")
    return body["choices"][0]["message"]["tool_calls"][0]["id"], headers["x-agentsched-program"]


async def test_a_minted_tool_call_tells_its_program() -> None:
    async with served() as served_:
        tool_call, program = await tool_call_of(served_)
        started = {"event": "ToolStarted", "tool_call": tool_call, "tool": "bash", "command": "pytest"}
        status, body, _ = await served_.post("/agentsched/v1/events", {"events": [started]})
        assert (status, body) == (200, {"accepted": 1, "ignored": 0})
        view = (await served_.programs())[program]
        assert (view["state"], view["tools"]) == ("tool", [tool_call])
        progressed = {"event": "ToolProgressed", "tool_call": tool_call, "cpu_s": 0.1, "memory_bytes": 5}
        events = [progressed, FINISHED | {"tool_call": tool_call}]
        assert (await served_.post("/agentsched/v1/events", {"events": events}))[1]["accepted"] == 2
        assert (await served_.programs())[program]["state"] == "idle"
        assert await served_.metric("agentsched_tool_calls_total") == 1


async def test_ours_counts_if_the_sender_names_another_program() -> None:
    """An SDK that knows the run by a name of its own, and a client that did not send that name."""
    async with served() as served_:
        tool_call, program = await tool_call_of(served_)
        started = {"event": "ToolStarted", "tool_call": tool_call, "tool": "bash", "program": "other"}
        await served_.post("/agentsched/v1/events", {"events": [started]})
        assert (await served_.programs())[program]["tools"] == [tool_call]


async def test_programs_are_opened_and_closed_by_their_owner() -> None:
    async with served() as served_:
        opened = {"event": "ProgramOpened", "program": "p", "expected_calls": 3}
        closed = {"event": "ProgramClosed", "program": "p"}
        _, body, _ = await served_.post("/agentsched/v1/events", {"events": [opened, opened]})
        assert body == {"accepted": 1, "ignored": 1}
        assert (await served_.programs())["p"]["expected_calls"] == 3
        _, body, _ = await served_.post("/agentsched/v1/events", {"events": [closed, closed]})
        assert body == {"accepted": 1, "ignored": 1}
        assert await served_.programs() == {}


async def test_hosts_of_tools_come_change_and_go() -> None:
    async with served() as served_:
        attached = {"event": "HostAttached", "host": "box", "memory_bytes": 4_000_000_000}
        opened = {"event": "ProgramOpened", "program": "p", "host": "box"}
        lost = {"event": "HostLost", "host": "box"}
        _, body, _ = await served_.post(
            "/agentsched/v1/events", {"events": [attached, attached, opened, lost, lost]}
        )
        assert body == {"accepted": 4, "ignored": 1}


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ("text", "events[1]"),
        ({"event": "StepReport"}, "events[1].event"),
        ({"program": "p"}, "events[1].event"),
        ({"event": "ProgramOpened"}, "events[1].program"),
        ({"event": "ProgramOpened", "program": ""}, "events[1].program"),
        ({"event": "ProgramOpened", "program": 3}, "events[1].program"),
        ({"event": "ProgramOpened", "program": "p", "tenant": "t"}, "events[1].tenant"),
        ({"event": "ProgramOpened", "program": "p", "weight": 2.0}, "events[1].weight"),
        ({"event": "ProgramOpened", "program": "//t/p"}, "events[1].program"),
        ({"event": "ProgramOpened", "program": "p", "parent": "//t/p"}, "events[1].parent"),
        ({"event": "ProgramClosed", "program": "p", "expired": True}, "events[1].expired"),
        (
            {"event": "ToolStarted", "tool_call": "t", "tool": "x", "extra": 1},
            "events[1].extra",
        ),
        ({"event": "HostAttached", "host": "", "memory_bytes": 1}, "events[1].host"),
        ({"event": "HostAttached", "host": "box"}, "events[1].memory_bytes"),
        (FINISHED | {"tool_call": "unknown"}, "events[1].program"),
        (FINISHED | {"tool_call": "t", "program": "p", "wall_s": "long"}, "events[1].wall_s"),
        (FINISHED | {"tool_call": "t", "program": "p", "wall_s": -1}, "events[1].wall_s"),
    ],
)
async def test_one_bad_event_and_none_counts(bad: Any, field: str) -> None:
    async with served() as served_:
        good = {"event": "ProgramOpened", "program": "good"}
        status, body, _ = await served_.post("/agentsched/v1/events", {"events": [good, bad]})
        assert (status, body["error"]["param"]) == (400, field), body
        assert await served_.programs() == {}


async def test_the_body_must_hold_a_list() -> None:
    async with served() as served_:
        bodies: list[Any] = [{}, {"events": {}}, []]
        for body in bodies:
            assert (await served_.post("/agentsched/v1/events", body))[0] == 400
