"""In front of servers that were not started here: what stock SGLang and vLLM are told of calls, what is
carried out of the core's decisions, and what is learned from them. The servers are doubles of their HTTP
side."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest

from agentsched.core.decisions import Rank, Retain, Segment, Worth
from agentsched.daemon.settings import Settings
from tests.daemon.keyed import ACME, ADMIN_KEY, BOLT, two_tenants
from tests.daemon.serving import Served, chat, until
from tests.daemon.upstreams import USAGE, Double, Got, answered, finished, in_front_of, plainly
from tests.engines.test_dialects import SGLANG, VLLM

CHAT = "/v1/chat/completions"
SOFT = {"enable_session_radix_cache": True, "enable_priority_scheduling": True}


def sglang(**info: Any) -> Double:
    double = Double(plainly)
    double.others["/server_info"] = SGLANG | info
    double.others["/close_session"] = {}
    return double


def vllm(declared: str = "") -> Double:
    double = Double(plainly, declared=declared)
    double.others["/metrics"] = VLLM
    double.others["/version"] = {"version": "0.32.0"}
    return double


def sent(double: Double, number: int = -1) -> dict[str, Any]:
    found = json.loads(double.requests[number].body)
    assert isinstance(found, dict)
    return found


def closed(double: Double) -> list[str]:
    return [json.loads(body)["session_id"] for path, body in double.asked if path == "/close_session"]


async def gapped(served: Served, program: str) -> None:
    """One call of it, and its gap is known of: from the first gap on there is something to keep."""
    await served.chat("hi", program=program)
    sessions: Any = next(iter(served.daemon.engines.values()))._sessions  # type: ignore[attr-defined]
    await until(lambda: sessions.used, "the server is told that KV is kept")


async def test_a_program_has_a_session_from_its_first_gap_on_and_it_is_closed_at_its_end() -> None:
    double = sglang(**SOFT)
    async with in_front_of(double) as served:
        engine = next(iter(served.daemon.engines.values()))
        assert engine.capabilities.retention
        await gapped(served, "first")
        await served.chat("hi", program="p")
        assert sent(double)["session_id"] == "p"
        await finished(served, 2)
        assert closed(double) == []
        status, _, _ = await served.ask("DELETE", "/agentsched/v1/programs/p")
        assert status == 204
        await until(lambda: closed(double) == ["p"], "its session is closed")
        await served.chat("hi", program="p")
        assert sent(double)["session_id"] == "p"


async def test_a_session_ends_with_the_lease_of_its_programs_kv() -> None:
    double = sglang(**SOFT)
    async with in_front_of(double) as served:
        engine = next(iter(served.daemon.engines.values()))
        await gapped(served, "first")
        for program in ("short", "long"):
            await served.chat("hi", program=program)
        await finished(served, 3)
        for number, (program, lease_s) in enumerate((("short", 0.05), ("long", 600.0))):
            until_s = time.monotonic() + lease_s
            worth = Worth(until_s=until_s, value=1.0)
            retain = Retain(
                program=program,
                engine=engine.name,
                segments=(Segment(start_tokens=0, end_tokens=10, device=(worth,)),),
                lease_until_s=until_s,
                cause=1,
                epoch=2**40,
                seq=number,
            )
            await engine.order([retain])
        await until(lambda: "short" in closed(double), "its session is closed")
        assert "long" not in closed(double)


async def test_fields_are_spliced_in_behind_bytes_that_do_not_change() -> None:
    double = sglang(**SOFT)
    odd = b'{ "model":"m", "messages" : [{"role":"user","content":"h\\u00e9 \xc3\xa9"}],\n "x": 1.0 }\n'
    async with in_front_of(double) as served:
        await gapped(served, "first")
        async with served.http.post(
            served.url + CHAT, data=odd, headers={"x-agentsched-program": "p"}
        ) as answer:
            assert answer.status == 200
    assert double.requests[-1].body == odd[:-3] + b',"session_id":"p","priority":0}'


async def test_a_clients_own_fields_are_replaced_where_they_stand() -> None:
    double = sglang(**SOFT)
    async with in_front_of(double) as served:
        await gapped(served, "first")
        body = chat("hi") | {"session_id": "theirs", "priority": 99, "temperature": 0.5}
        await served.post(CHAT, body, x_agentsched_program="p")
        assert sent(double) == body | {"session_id": "p", "priority": 0}


async def test_without_fields_the_same_server_gets_bodies_as_they_came(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    double = sglang(**SOFT)
    async with in_front_of(double, fields=False) as served:
        assert not next(iter(served.daemon.engines.values())).capabilities.retention
        for program in ("first", "p"):
            await served.post(CHAT, chat("hi"), x_agentsched_program=program)
    assert [json.loads(got.body) for got in double.requests] == [chat("hi")] * 2
    assert any("service: order" in message for message in caplog.messages)
    assert any("upstream.fields" in message for message in caplog.messages)


async def test_a_daemon_that_only_watches_pins_and_orders_nothing() -> None:
    double = sglang(**SOFT)
    async with in_front_of(double, observe=True) as served:
        for program in ("first", "p"):
            await served.chat("hi", program=program)
        assert "session_id" not in sent(double)
        assert "priority" not in sent(double)
        served.daemon.reload(Settings(port=0, observe=False))
        await gapped(served, "q")
        await served.chat("hi", program="p")
        assert sent(double)["session_id"] == "p"


async def test_a_policy_that_leaves_eviction_to_the_engine_pins_nothing() -> None:
    double = sglang(**SOFT)
    async with in_front_of(double, policy="fcfs-lru") as served:
        for program in ("first", "p", "p"):
            await served.chat("hi", program=program)
        assert "session_id" not in sent(double)


async def test_the_rank_that_was_ordered_is_the_priority_that_is_sent() -> None:
    """Also if both are decided with one event: engines are told before calls are let through."""
    double = sglang(**SOFT)
    async with in_front_of(double) as served:
        engine = next(iter(served.daemon.engines.values()))
        await engine.order([Rank(program="p", engine=engine.name, cause=1, epoch=2**40, seq=1, key=123.4)])
        await served.chat("hi", program="p")
        assert sent(double)["priority"] == -123
        await served.chat("hi", program="q")
        assert sent(double)["priority"] == 0


async def test_a_server_that_does_not_close_sessions_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    double = sglang(**SOFT)
    del double.others["/close_session"]

    async def answer(got: Got) -> None:
        if "close_session" in got.line:
            await got.whole({}, "403 Forbidden")
        else:
            await plainly(got)

    double.answer = answer
    async with in_front_of(double) as served:
        await gapped(served, "first")
        for program in ("p", "q"):
            await served.chat("hi", program=program)
            await served.ask("DELETE", f"/agentsched/v1/programs/{program}")
        await until(
            lambda: sum("close_session" in got.line for got in double.requests) == 2, "both are asked for"
        )
        await served.chat("hi", program="r")
    assert sum("does not close sessions (status 403)" in message for message in caplog.messages) == 1


async def test_what_its_metrics_tell_is_reported() -> None:
    double = sglang(**SOFT)
    double.others["/metrics"] = (
        b"sglang:kv_available_tokens 1000.0\nsglang:kv_evictable_tokens 2000.0\nsglang:num_running_reqs 3.0\n"
        b"sglang:num_queue_reqs 1.0\nsglang:evicted_tokens_total 50.0\n"
    )
    async with in_front_of(double, kv_tokens=None) as served:

        async def told() -> bool:
            return await served.metric("agentsched_kv_tokens", kind="free") == 1_000

        await until(told, "what is free is known")
        assert await served.metric("agentsched_kv_tokens", kind="evictable") == 2_000
        double.others["/metrics"] = double.others["/metrics"].replace(b" 50.0", b" 80.0")

        async def evicted() -> bool:
            return await served.metric("agentsched_engine_tokens_total", kind="evicted") == 30

        await until(evicted, "what was evicted since is known")


async def test_what_was_held_once_and_is_computed_again_is_counted() -> None:
    """By the cached tokens that the server tells of each call."""
    usages = iter([(1_000, 0), (1_200, 990), (1_400, 200), (1_500, 1_390)])

    async def answer(got: Got) -> None:
        prompt, cached = next(usages)
        details = {"cached_tokens": cached}
        usage = USAGE | {"prompt_tokens": prompt, "prompt_tokens_details": details}
        await got.whole(answered() | {"usage": usage})

    double = sglang()
    double.answer = answer
    async with in_front_of(double) as served:
        for number in range(4):
            await served.chat("hi", program="p")
            await finished(served, number + 1)
        assert await served.metric("agentsched_tokens_total", kind="cached") == 990 + 200 + 1_390
        assert await served.metric("agentsched_tokens_total", kind="recomputed") == 1_200 - 64 - 200


async def test_a_vllm_is_told_of_tenants_and_priorities() -> None:
    double = vllm("#priority")
    async with in_front_of(double, declared=two_tenants(), kv_tokens=None) as served:
        for key in (ACME, BOLT):
            await served.post(CHAT, chat("hi"), x_api_key=key)
        salts = [sent(double, number)["cache_salt"] for number in (0, 1)]
        assert salts == ["acme", "bolt"]
        assert sent(double)["priority"] == 0
        theirs = chat("hi") | {"cache_salt": "acme"}  # bolt guesses: it finds nothing of acme's
        await served.post(CHAT, theirs, x_api_key=BOLT)
        assert sent(double)["cache_salt"] not in ("acme", "bolt")
        messages = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
        await served.post("/v1/messages", messages, x_api_key=ACME)
        assert sent(double)["cache_salt"] == "acme"
        assert "priority" not in sent(double)
        assert double.requests[-1].headers["x-vllm-priority"] == "0"


async def test_who_has_no_tenant_has_no_salt() -> None:
    double = vllm()
    async with in_front_of(double) as served:
        await served.post(CHAT, chat("hi"))
    assert sent(double) == chat("hi")


async def test_a_server_that_cannot_tell_tenants_apart_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    double = Double(plainly)
    async with in_front_of(double, declared=two_tenants()) as served:
        for key in (ACME, BOLT, ACME):
            assert (await served.post(CHAT, chat("hi"), x_api_key=key))[0] == 200
    assert sum("tenants find each other's there" in message for message in caplog.messages) == 1
    assert "cache_salt" not in sent(double)


async def test_what_service_there_is_is_said_where_operators_look(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    soft, plain = sglang(**SOFT), Double(plainly)
    async with in_front_of(soft, plain) as served:
        status, shown, _ = await served.ask("GET", "/agentsched/admin/engines")
        assert status == 200
        engines = {engine["engine"]: engine for engine in shown["engines"]}
        assert {engine["kind"]: engine["level"] for engine in engines.values()} == {
            "sglang": "soft",
            "http": "order",
        }
        of_soft = engines[f"127.0.0.1:{soft.port}"]
        assert "pins by session, on or off" in of_soft["does"]
        assert {"what", "remedy"} == of_soft["lacks"][0].keys()
        assert await served.metric("agentsched_engine_service", level="soft") == 1
        assert await served.metric("agentsched_engine_service", level="order") == 1
    said = [message for message in caplog.messages if "service:" in message]
    assert sum("sglang 0.5.23" in message and "service: soft" in message for message in said) == 1
    assert sum("service: order (calls are let in and placed)" in message for message in said) == 1


async def test_only_admins_are_told_of_engines() -> None:
    async with in_front_of(Double(plainly), declared=two_tenants()) as served:
        assert (await served.ask("GET", "/agentsched/admin/engines", x_api_key=ACME))[0] == 403
        assert (await served.ask("GET", "/agentsched/admin/engines", x_api_key=ADMIN_KEY))[0] == 200


async def test_what_is_held_for_a_program_is_known_from_events() -> None:
    published = pytest.importorskip("tests.engines.published")
    async with published.Publisher() as publisher:
        double = vllm(f"#events={publisher.endpoint},replay={publisher.replay}")
        await publisher.publish(published.stored([1, 2], session="p", size=32))
        async with in_front_of(double, kv_tokens=None) as served:
            await served.chat("hi", program="p")
            assert double.requests[0].headers["x-session-id"] == "p"

            async def held(tokens: int) -> bool:
                return bool((await served.programs())["p"]["held_device_tokens"] == tokens)

            async def grows() -> bool:
                await publisher.publish(published.stored([3], 2, session="p", size=32))
                return await held(96)

            await until(grows, "what it has now is known, and what it had from before")
            await publisher.publish(published.removed([3]))

            async def shrinks() -> bool:
                return await held(64)

            await until(shrinks, "what it lost is known")
            assert await served.metric("agentsched_engine_tokens_total", kind="evicted") == 32
