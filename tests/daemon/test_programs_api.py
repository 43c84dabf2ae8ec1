"""Programs as their owners announce, describe, list and end them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.daemon.keyed import ACME, BOLT, two_tenants
from tests.daemon.serving import SLOW, Served, served, until

PROGRAMS = "/agentsched/v1/programs"


async def test_a_program_lives_from_its_announcement_to_its_end() -> None:
    async with served() as served_:
        said = {"program": "p", "expected_calls": 3, "deadline_s": 60.0, "parent": "above"}
        status, made, _ = await served_.post(PROGRAMS, said)
        assert (status, made["state"], made["expected_calls"], made["parent"]) == (201, "idle", 3, "above")
        assert 0 < made["due_in_s"] <= 60.0
        await served_.chat("/say a", program="p")
        _, view, _ = await served_.ask("GET", f"{PROGRAMS}/p")
        assert (view["calls_done"], view["program"], view["tenant"]) == (1, "p", "default")
        assert view["context_tokens"] > 0
        said = {"expected_calls": 9, "deadline_s": 500}
        status, view, _ = await served_.ask("PATCH", f"{PROGRAMS}/p", said)
        assert (status, view["expected_calls"], view["due_in_s"] > 60) == (200, 9, True)
        assert (await served_.ask("DELETE", f"{PROGRAMS}/p"))[:2] == (204, None)
        for method in ("GET", "PATCH", "DELETE"):
            status, body, _ = await served_.ask(method, f"{PROGRAMS}/p", {})
            assert (status, body["error"]["code"]) == (404, "program_not_found")


async def test_a_program_without_a_name_gets_one_that_calls_can_state() -> None:
    async with served(declared=two_tenants()) as served_:
        _, made, _ = await served_.post(PROGRAMS, {}, x_api_key=ACME)
        await served_.chat("/say a", program=made["program"], key=ACME)
        assert (await served_.programs(ACME))[made["program"]]["calls_done"] == 1
        assert "//" not in made["program"]


async def test_the_body_may_be_empty() -> None:
    async with served() as served_, served_.http.post(served_.url + PROGRAMS) as answer:
        assert answer.status == 201


async def test_what_is_open_already_is_not_announced_again() -> None:
    async with served(declared=two_tenants()) as served_:
        await served_.chat("/say a", program="p", key=ACME)
        status, body, _ = await served_.post(PROGRAMS, {"program": "p"}, x_api_key=ACME)
        assert (status, body["error"]["code"]) == (409, "program_exists")
        assert (await served_.post(PROGRAMS, {"program": "p"}, x_api_key=BOLT))[0] == 201


async def test_names_with_slashes_can_be_looked_at() -> None:
    async with served() as served_:
        await served_.post(PROGRAMS, {"program": "claude-code:s/a"})
        for written in ("claude-code:s/a", "claude-code:s%2Fa"):
            assert (await served_.ask("GET", f"{PROGRAMS}/{written}"))[1]["program"] == "claude-code:s/a"


async def test_pages_are_in_order_of_opening_and_have_the_callers_programs_only() -> None:
    async with served(declared=two_tenants()) as served_:
        for number in range(5):
            for key in (ACME, BOLT):
                await served_.post(PROGRAMS, {"program": f"p{number}"}, x_api_key=key)
        found: list[str] = []
        after: int | None = 0
        for _ in range(3):
            _, page, _ = await served_.ask("GET", f"{PROGRAMS}?limit=2&after={after}", x_api_key=ACME)
            found += [program["program"] for program in page["programs"]]
            # Programs that end meanwhile neither hide others nor show them twice.
            await served_.ask("DELETE", f"{PROGRAMS}/{found[0]}", x_api_key=ACME)
            after = page["next"]
        assert (found, after) == ([f"p{number}" for number in range(5)], None)


async def test_programs_are_found_by_state_and_by_parent() -> None:
    async with served() as served_:
        await served_.post(PROGRAMS, {"program": "a"})
        await served_.post(PROGRAMS, {"program": "b", "parent": "a"})
        started = {"event": "ToolStarted", "tool_call": "t", "tool": "bash", "program": "a"}
        await served_.post("/agentsched/v1/events", {"events": [started]})

        async def names(query: str) -> list[str]:
            _, page, _ = await served_.ask("GET", f"{PROGRAMS}?{query}")
            return [program["program"] for program in page["programs"]]

        assert await names("state=tool") == ["a"]
        assert await names("state=idle") == ["b"]
        assert await names("parent=a") == ["b"]
        assert await names("parent=a&state=tool") == []


async def test_annotations_of_tools_need_no_more_than_is_known() -> None:
    async with served() as served_:
        await served_.chat("/say a", program="p")
        tool = {"tool_call": "t", "program": "p"}
        events = [
            tool | {"event": "ToolStarted", "tool": "pytest"},
            tool | {"event": "ToolProgressed", "done_fraction": 0.4},
            {"event": "ProgramAnnotated", "program": "p", "expected_calls": 7},
        ]
        _, body, _ = await served_.post("/agentsched/v1/events", {"events": events})
        assert body == {"accepted": 3, "ignored": 0}
        view = (await served_.programs())["p"]
        assert (view["tools"], view["state"], view["expected_calls"]) == (["t"], "tool", 7)


async def test_ending_a_program_ends_its_calls() -> None:
    async with served(SLOW) as served_:
        call = asyncio.create_task(served_.chat("no meaning", program="p", max_tokens=500))

        async def open_() -> bool:
            return "p" in await served_.programs()

        await until(open_, "it runs")
        assert (await served_.ask("DELETE", f"{PROGRAMS}/p"))[0] == 204
        status, body, _ = await call
        assert (status, body["error"]["code"]) == (409, "program_closed")


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", PROGRAMS, {"program": ""}, "program"),
        ("POST", PROGRAMS, {"program": "a\nb"}, "program"),
        ("POST", PROGRAMS, {"program": "//acme/p"}, "program"),
        ("POST", PROGRAMS, {"parent": "//acme/p"}, "parent"),
        ("POST", PROGRAMS, {"program": "p" * 257}, "program"),
        ("POST", PROGRAMS, {"tenant": "acme"}, "tenant"),
        ("POST", PROGRAMS, {"expected_calls": 0}, "expected_calls"),
        ("POST", PROGRAMS, {"expected_calls": 1.5}, "expected_calls"),
        ("POST", PROGRAMS, {"deadline_s": -1}, "deadline_s"),
        ("POST", PROGRAMS, {"deadline_s": "soon"}, "deadline_s"),
        ("PATCH", f"{PROGRAMS}/known", {"deadline_s": 0}, "deadline_s"),
        ("PATCH", f"{PROGRAMS}/known", {"state": "done"}, "state"),
        ("GET", f"{PROGRAMS}?limit=0", None, "limit"),
        ("GET", f"{PROGRAMS}?limit=many", None, "limit"),
        ("GET", f"{PROGRAMS}?limit=1&limit=2", None, "limit"),
        ("GET", f"{PROGRAMS}?state=asleep", None, "state"),
        ("GET", f"{PROGRAMS}?state=null", None, "state"),
        ("GET", f"{PROGRAMS}?parent=//acme/p", None, "parent"),
        ("GET", f"{PROGRAMS}?tenant=acme", None, "tenant"),
        ("GET", f"{PROGRAMS}/known?verbose=1", None, "verbose"),
    ],
)
async def test_a_clients_mistake_names_the_field(method: str, path: str, body: Any, field: str) -> None:
    async with served() as served_:
        await served_.post(PROGRAMS, {"program": "known"})
        status, told, _ = await served_.ask(method, path, body)
        assert (status, told["error"]["param"]) == (400, field), told
        assert set(await served_.programs()) == {"known"}


async def raw(served_: Served, method: str, path: str, data: bytes) -> tuple[int, Any]:
    async with served_.http.request(method, served_.url + path, data=data) as answer:
        return answer.status, await answer.json()


async def test_what_is_no_json_or_no_method_is_refused_in_the_same_form() -> None:
    async with served() as served_:
        for data in (
            b"{",
            b"[]",
            b"\xff",
            b'"p"',
            b"[" * 100_000,
            b'{"deadline_s": 1e999}',
            b'{"deadline_s": NaN}',
        ):
            status, body = await raw(served_, "POST", PROGRAMS, data)
            assert (status, body["error"]["type"]) == (400, "invalid_request_error")
        status, body, headers = await served_.ask("PUT", PROGRAMS, {})
        assert (status, body["error"]["type"]) == (405, "invalid_request_error")
        assert set(headers["Allow"].split(",")) == {"GET", "HEAD", "POST"}


async def test_whole_floats_are_integers_as_in_json_schema() -> None:
    async with served() as served_:
        status, body = await raw(served_, "POST", PROGRAMS, b'{"expected_calls": 3.0, "deadline_s": 2}')
        assert (status, body["expected_calls"]) == (201, 3)


async def test_an_event_with_an_infinite_number_is_refused() -> None:
    async with served() as served_:
        await served_.post(PROGRAMS, {"program": "p"})
        data = b'{"events": [{"event": "ToolProgressed", "program": "p", "tool_call": "t", "cpu_s": 1e999}]}'
        assert (await raw(served_, "POST", "/agentsched/v1/events", data))[0] == 400
