"""Tenants: nobody sees, names, ends, describes or times what another one does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentsched.daemon.accounts import SharedPrefix
from tests.daemon.keyed import ACME, ADMIN_KEY, BOLT, admin_only, two_tenants
from tests.daemon.serving import SLOW, Served, chat, served, until

PROGRAMS = "/agentsched/v1/programs"
EVENTS = "/agentsched/v1/events"
SYSTEM = "You are an agent of the house. " * 20


async def cached_tokens(served_: Served, key: str, messages: list[Any], program: str) -> int:
    status, body, _ = await served_.chat("", messages=messages, program=program, key=key)
    assert status == 200, body
    return int(body["usage"]["prompt_tokens_details"]["cached_tokens"])


def first_call(content: str, system: str = SYSTEM) -> list[Any]:
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


async def test_nobody_is_served_without_a_key_once_there_is_one() -> None:
    async with served(declared=two_tenants()) as served_:
        for method, path in (
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/messages"),
            ("POST", "/program/p/v1/messages"),
            ("POST", "/tokenize"),
            ("GET", "/v1/models"),
            ("GET", PROGRAMS),
            ("POST", EVENTS),
            ("GET", "/metrics"),
            ("GET", "/agentsched/admin/tenants"),
            ("GET", "/nothing/here"),
        ):
            status, body, headers = await served_.ask(method, path, {})
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), path
            assert body["error"]["type"] == "authentication_error"
            assert (await served_.ask(method, path, {}, x_api_key="ask-guessed"))[0] == 401
        for path in ("/health", "/ready", "/openapi.json"):
            assert (await served_.ask("GET", path))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ACME}"},
        {"authorization": f"bearer {ACME}"},
        {"x_api_key": ACME},
        {"x_api_key": "sk-ant-of-another-daemon", "authorization": f"Bearer {ACME}"},
    ],
)
async def test_a_key_comes_in_either_header(headers: dict[str, str]) -> None:
    async with served(declared=two_tenants()) as served_:
        status, body, _ = await served_.ask("GET", "/agentsched/v1/account", **headers)
        assert (status, body["tenant"]) == (200, "acme")


async def test_keys_of_two_tenants_in_one_request_are_refused() -> None:
    async with served(declared=two_tenants()) as served_:
        both = {"x_api_key": ACME, "authorization": f"Bearer {BOLT}"}
        assert (await served_.ask("GET", PROGRAMS, **both))[0] == 401


async def test_an_admin_is_no_tenant_and_a_tenant_no_admin() -> None:
    async with served(declared=two_tenants()) as served_:
        assert (await served_.ask("GET", PROGRAMS, x_api_key=ADMIN_KEY))[0] == 403
        for path in ("/agentsched/admin/tenants", "/metrics"):
            assert (await served_.ask("GET", path, x_api_key=ACME))[0] == 403


async def test_errors_of_keys_have_the_form_of_the_api() -> None:
    async with served(declared=two_tenants()) as served_:
        _, body, _ = await served_.post("/v1/messages", {}, x_api_key="ask-guessed")
        assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")


async def test_the_same_stated_name_is_two_programs() -> None:
    async with served(declared=two_tenants()) as served_:
        for key, times in ((ACME, 2), (BOLT, 1)):
            for number in range(times):
                status, _, headers = await served_.chat(f"/say {number}", program="p", key=key)
                assert (status, headers["x-agentsched-program"]) == (200, "p")
        assert (await served_.programs(ACME))["p"]["calls_done"] == 2
        assert (await served_.programs(BOLT))["p"]["calls_done"] == 1
        assert set(await served_.programs(ACME)) == {"p"}


async def test_why_a_program_sits_where_it_does_tells_of_others_and_is_not_told_to_tenants() -> None:
    async with served(declared=two_tenants()) as keyed, served() as open_:
        await keyed.chat("/say a", program="p", key=ACME)
        await open_.chat("/say a", program="p")
        assert (await keyed.programs(ACME))["p"]["why"] is None
        assert (await open_.programs())["p"]["why"]


async def test_no_name_reaches_across() -> None:
    async with served(declared=two_tenants()) as served_:
        await served_.chat("/say a", program="p", key=ACME)
        for name in ("//acme/p", "//bolt/p"):
            status, body, _ = await served_.chat("/say b", program=name, key=BOLT)
            assert (status, body["error"]["param"]) == (400, "x-agentsched-program")
        for path in (f"{PROGRAMS}/p", f"{PROGRAMS}///acme/p", f"{PROGRAMS}/%2F%2Facme%2Fp"):
            for method in ("GET", "PATCH", "DELETE"):
                assert (await served_.ask(method, path, {}, x_api_key=BOLT))[0] == 404, path
        # a path names a program, too; what is no name says nothing
        body = chat("/say b")
        status, _, headers = await served_.post(
            "/program/%2F%2Facme%2Fp/v1/chat/completions", body, x_api_key=BOLT
        )
        assert (status, set(await served_.programs(BOLT))) == (200, {headers["x-agentsched-program"]})
        assert (await served_.programs(ACME))["p"]["calls_done"] == 1


async def test_the_same_session_is_two_programs_and_parents_stay_with_their_tenant() -> None:
    async with served(declared=two_tenants()) as served_:
        for key in (ACME, BOLT):
            session = {"x_claude_code_session_id": "s", "x_claude_code_agent_id": "a", "x_api_key": key}
            status, _, headers = await served_.post("/v1/chat/completions", chat("/say a"), **session)
            assert (status, headers["x-agentsched-program"]) == (200, "claude-code:s/a")
            (view,) = (await served_.programs(key)).values()
            assert (view["parent"], view["calls_done"]) == ("claude-code:s", 1)


async def test_the_same_conversation_is_continued_by_its_own_tenant_only() -> None:
    """Word for word, tool call ids included, as if one had read the other's transcript."""
    async with served(declared=two_tenants()) as served_:
        _, body, headers = await served_.chat("/call bash {}", key=ACME)
        program = headers["x-agentsched-program"]
        message = body["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "x" * 60}
        messages = [{"role": "user", "content": "/call bash {}"}, message, result]
        _, _, stranger = await served_.chat("", messages=messages, key=BOLT)
        assert stranger["x-agentsched-program"] != program
        assert (await served_.programs(ACME))[program]["calls_done"] == 1
        _, _, own = await served_.chat("", messages=messages, key=ACME)
        assert own["x-agentsched-program"] == program
        assert (
            await served_.metric("agentsched_calls_identified_total", key=ADMIN_KEY, signal="tool call") == 1
        )


async def test_a_conversation_without_ids_and_words_that_are_quoted_lead_nowhere_else() -> None:
    async with served(declared=two_tenants()) as served_:
        words = "a summary of all that was found, long enough to be known again by its words alone"
        _, _, headers = await served_.chat(f"/say {words}", key=ACME)
        program = headers["x-agentsched-program"]
        talk = [
            {"role": "user", "content": f"/say {words}"},
            {"role": "assistant", "content": words},
            {"role": "user", "content": "/say more"},
        ]
        quoted = [{"role": "user", "content": f"Summary:\n{words}"}, {"role": "user", "content": "/say on"}]
        for messages in (talk, quoted):
            _, _, stranger = await served_.chat("", messages=messages, key=BOLT)
            assert stranger["x-agentsched-program"] != program
            _, _, own = await served_.chat("", messages=messages, key=ACME)
            assert own["x-agentsched-program"] == program


async def test_a_retry_attaches_to_no_call_of_another_tenant() -> None:
    async with served(SLOW, declared=two_tenants()) as served_:
        asked = [
            served_.chat("no meaning", program="p", max_tokens=20, key=key) for key in (ACME, BOLT, ACME)
        ]
        answers = await asyncio.gather(*asked)
        first, stranger, retry = (headers["x-agentsched-call"] for _, _, headers in answers)
        assert first == retry != stranger
        assert await served_.metric("agentsched_retries_attached_total", key=ADMIN_KEY) == 1


async def test_anothers_tools_cannot_be_told_of() -> None:
    async with served(declared=two_tenants()) as served_:
        _, body, headers = await served_.chat("/call bash {}", key=ACME)
        tool_call = body["choices"][0]["message"]["tool_calls"][0]["id"]
        started = {"event": "ToolStarted", "tool_call": tool_call, "tool": "bash"}
        status, body, _ = await served_.post(EVENTS, {"events": [started]}, x_api_key=BOLT)
        assert (status, body["error"]["param"]) == (400, "events[0].program")
        program = headers["x-agentsched-program"]
        for event in (
            started | {"program": program},
            {"event": "ProgramAnnotated", "program": program, "deadline_s": 1.0},
            {"event": "ProgramClosed", "program": program},
        ):
            await served_.post(EVENTS, {"events": [event]}, x_api_key=BOLT)
        (view,) = (await served_.programs(ACME)).values()
        assert (view["tools"], view["due_in_s"], view["state"]) == ([], None, "idle")


async def test_hosts_of_tools_are_their_tenants() -> None:
    async with served(declared=two_tenants()) as served_:
        attached = {"event": "HostAttached", "host": "box", "memory_bytes": 4_000_000_000}
        await served_.post(EVENTS, {"events": [attached]}, x_api_key=ACME)
        lost = {"events": [{"event": "HostLost", "host": "box"}]}
        assert (await served_.post(EVENTS, lost, x_api_key=BOLT))[1] == {"accepted": 0, "ignored": 1}
        assert (await served_.post(EVENTS, lost, x_api_key=ACME))[1] == {"accepted": 1, "ignored": 0}


async def test_cached_tokens_are_never_shared_unless_they_are_declared() -> None:
    async with served(declared=two_tenants()) as served_:
        messages = first_call("/say a")
        assert await cached_tokens(served_, ACME, messages, "p") == 0
        assert await cached_tokens(served_, BOLT, messages, "p") == 0
        assert await cached_tokens(served_, ACME, messages, "q") > len(SYSTEM) // 2


async def test_a_declared_prefix_is_shared_up_to_what_is_declared() -> None:
    async with served(declared=two_tenants([SharedPrefix(system=SYSTEM)])) as served_:
        assert await cached_tokens(served_, ACME, first_call("/say secret"), "p") == 0
        shared = await cached_tokens(served_, BOLT, first_call("/say secret"), "p")
        block = served_.daemon.engines["simulated"].capabilities.block_tokens
        public = len(f"system: {SYSTEM}\nuser: ")
        assert public - block < shared <= public
        # Whoever goes on from a part of it shares that part, and nothing that is the tenant's own.
        longer = first_call("/say secret", SYSTEM + "Our own rules, which nobody else shall see. " * 10)
        assert await cached_tokens(served_, ACME, longer, "q") <= public
        assert await cached_tokens(served_, BOLT, longer, "q") <= public


async def test_a_name_that_is_given_again_finds_no_kv_of_the_deleted_tenant() -> None:
    async with served(declared=admin_only()) as served_:
        keys = []
        for _ in range(2):
            status, _, _ = await served_.post(
                "/agentsched/admin/tenants", {"name": "acme"}, x_api_key=ADMIN_KEY
            )
            assert status == 201
            path = "/agentsched/admin/tenants/acme/keys"
            keys.append((await served_.post(path, {}, x_api_key=ADMIN_KEY))[1]["key"])
            assert await cached_tokens(served_, keys[-1], first_call("/say a"), "p") == 0
            assert set(await served_.programs(keys[-1])) == {"p"}
            path = "/agentsched/admin/tenants/acme"
            assert (await served_.ask("DELETE", path, x_api_key=ADMIN_KEY))[0] == 204
            assert (await served_.ask("GET", PROGRAMS, x_api_key=keys[-1]))[0] == 401


async def test_deleting_a_tenant_ends_its_calls() -> None:
    async with served(SLOW, declared=admin_only()) as served_:
        await served_.post("/agentsched/admin/tenants", {"name": "acme"}, x_api_key=ADMIN_KEY)
        _, made, _ = await served_.post("/agentsched/admin/tenants/acme/keys", {}, x_api_key=ADMIN_KEY)
        call = asyncio.create_task(served_.chat("no meaning", max_tokens=500, key=made["key"]))

        async def running() -> bool:
            return bool(await served_.programs(made["key"]))

        await until(running, "it runs")
        await served_.ask("DELETE", "/agentsched/admin/tenants/acme", x_api_key=ADMIN_KEY)
        status, body, _ = await call
        assert (status, body["error"]["code"]) == (409, "program_closed")
        assert "//" not in body["error"]["message"]
        await until(lambda: not served_.steps[0].has_work, "the engine goes on computing")
