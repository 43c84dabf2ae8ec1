"""What requests say of whose they are, by header, body and path; also those of real clients."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.daemon.signals import Origin, Signal, read
from agentsched.workloads.acting import ActingMind
from tests.daemon.recordings import recorded
from tests.daemon.serving import chat, served

SESSION = "81c73b56-c642-410e-b234-eedfaf5951ab"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CLAUDE_USER = '{"device_id":"d","session_id":"%s"}' % SESSION  # noqa: UP031 (it is full of braces)


def signals(body: Any = None, path: str | None = None, **headers: str) -> list[Signal]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return list(read(Origin(headers=named, body=body or {}, path=path)))


CLAUDE = f"claude-code:{SESSION}"
SAID: list[tuple[Any, dict[str, str], Signal]] = [
    ({}, {"x_agentsched_program": "p"}, Signal("stated", "p")),
    ({"program_id": "p"}, {}, Signal("stated", "p")),
    ({}, {"x_claude_code_session_id": SESSION}, Signal("client", CLAUDE)),
    ({"metadata": {"user_id": CLAUDE_USER}}, {}, Signal("client", CLAUDE)),
    ({"metadata": {"user_id": f"user_ab_account__session_{SESSION}"}}, {}, Signal("client", CLAUDE)),
    (
        {},
        {"x_claude_code_session_id": SESSION, "x_claude_code_agent_id": "a1"},
        Signal("client", f"{CLAUDE}/a1", CLAUDE),
    ),
    (
        {},
        {
            "x_claude_code_session_id": SESSION,
            "x_claude_code_agent_id": "a2",
            "x_claude_code_parent_agent_id": "a1",
        },
        Signal("client", f"{CLAUDE}/a2", f"{CLAUDE}/a1"),
    ),
    ({}, {"x_codex_window_id": "w", "session_id": "s", "thread_id": "t"}, Signal("client", "codex:t")),
    (
        {},
        {"x_codex_parent_thread_id": "t", "session_id": "s", "thread_id": "u"},
        Signal("client", "codex:u", "codex:t"),
    ),
    ({}, {"x_session_id": "s"}, Signal("session header", "session:s")),
    ({}, {"session_id": "s"}, Signal("session header", "session:s")),
    (
        {},
        {"x_session_id": "s", "x_parent_session_id": "q"},
        Signal("session header", "session:s", "session:q"),
    ),
    ({}, {"x_foo_session_id": "s", "x_foo_agent_id": "a"}, Signal("session header", "foo:s/a")),
    (
        {},
        {"x_foo_session_id": "s", "x_foo_agent_id": "b", "x_foo_parent_agent_id": "a"},
        Signal("session header", "foo:s/b", "foo:s/a"),
    ),
    (
        {},
        {"x_foo_session_id": "f", "x_dynamo_session_id": "d", "x_dynamo_parent_session_id": "e"},
        Signal("session header", "dynamo:d", "dynamo:e"),
    ),
    ({"session_id": "s"}, {}, Signal("engine field", "sglang:s")),
    ({"session_params": {"id": "s"}}, {}, Signal("engine field", "sglang:s")),
    ({}, {"x_smg_routing_key": "s"}, Signal("engine field", "sglang:s")),
    (
        {"nvext": {"agent_context": {"session_id": "r", "trajectory_id": "t", "parent_trajectory_id": "q"}}},
        {},
        Signal("engine field", "dynamo:t", "dynamo:q"),
    ),
    (
        {},
        {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"},
        Signal("trace", f"trace:{TRACE_ID}", scope=True),
    ),
]


@pytest.mark.parametrize(("body", "headers", "signal"), SAID, ids=lambda value: str(value)[:50])
def test_what_a_request_says(body: Any, headers: dict[str, str], signal: Signal) -> None:
    assert signals(body, **headers)[0] == signal


def test_the_strongest_comes_first() -> None:
    body = {"session_id": "g", "program_id": "p"}
    traceparent = f"00-{TRACE_ID}-b7ad6b7169203331-01"
    found = signals(body, "run", x_session_id="s", x_claude_code_session_id=SESSION, traceparent=traceparent)
    assert [signal.kind for signal in found] == [
        "stated",
        "client",
        "session header",
        "engine field",
        "trace",
        "path",
    ]


NO_IDS = ["", "a\nb", "x" * 257, 5, None, [], {}, {"id": 5}, True]


@pytest.mark.parametrize("value", NO_IDS, ids=lambda value: str(value)[:20])
def test_what_is_no_id_says_nothing(value: Any) -> None:
    body = {"session_id": value, "session_params": value, "nvext": value, "metadata": value}
    assert signals(body) == []
    assert signals({"metadata": {"user_id": value}, "nvext": {"agent_context": value}}) == []
    if isinstance(value, str):
        assert signals(x_session_id=value, traceparent=value, x_agentsched_program=value) == []


@given(
    st.dictionaries(
        st.sampled_from(
            ["traceparent", "x-session-id", "x-claude-code-session-id", "thread-id", "x-codex-a"]
        ),
        st.text(max_size=20),
    ),
    st.dictionaries(
        st.sampled_from(["session_id", "session_params", "nvext", "metadata", "program_id"]),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda i: (
                st.lists(i)
                | st.dictionaries(
                    st.sampled_from(["id", "agent_context", "user_id", "session_id", "trajectory_id"]), i
                )
            ),
        ),
    ),
)
def test_whatever_is_sent_is_read(headers: dict[str, str], body: dict[str, Any]) -> None:
    for signal in read(Origin(headers=headers, body=body)):
        assert signal.program


async def test_the_agents_of_claude_code_and_codex_are_programs_and_know_their_parents() -> None:
    async with served(kv_tokens=500_000, mind=ActingMind(2)) as served_:
        expected: dict[str, str] = {}
        for row in recorded("claude-code") + recorded("codex"):
            headers = row["headers"]
            session, thread = headers.get("x-claude-code-session-id"), headers.get("thread-id")
            if not row["body"]:
                continue
            if session:
                own, above = (headers.get(f"x-claude-code-{which}-id") for which in ("agent", "parent-agent"))
                name = f"claude-code:{session}" + (f"/{own}" if own else "")
                parent = "" if not own else f"claude-code:{session}" + (f"/{above}" if above else "")
            else:
                above = headers.get("x-codex-parent-thread-id")
                name, parent = f"codex:{thread}", f"codex:{above}" if above else ""
            expected[name] = parent
            async with served_.http.post(
                served_.url + row["path"], json=row["body"], headers=headers
            ) as answer:
                await answer.read()
                assert answer.headers["x-agentsched-program"] == name
        found = {name: program["parent"] or "" for name, program in (await served_.programs()).items()}
        assert found == expected
        assert len(found) == 8
        assert await served_.metric("agentsched_calls_identified_total", signal="client") == 24


async def test_a_path_before_that_of_the_api_names_the_program() -> None:
    async with served() as served_:
        for path in ("/v1/chat/completions", "/v1/messages"):
            body = chat("/say a", max_tokens=5)
            status, _, headers = await served_.post(f"/program/run-17{path}", body)
            assert (status, headers["x-agentsched-program"]) == (200, "run-17")
        async with served_.http.head(f"{served_.url}/program/run-17/") as answer:
            assert answer.status == 200
        async with served_.http.get(f"{served_.url}/program/run-17/v1/models") as answer:
            assert answer.status == 200
