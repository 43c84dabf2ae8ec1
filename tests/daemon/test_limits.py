"""Terms of tenants: limits, deadlines, weights, and what is charged."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from agentsched.core import events as ev
from agentsched.core.log import read
from agentsched.daemon.limits import Bucket
from tests.daemon.keyed import ACME, ADMIN_KEY, BOLT, two_tenants
from tests.daemon.serving import SLOW, Served, served, until
from tests.daemon.test_waiting import data_line, streaming


async def account(served_: Served, key: str = ACME) -> Any:
    _, body, _ = await served_.ask("GET", "/agentsched/v1/account", x_api_key=key)
    return body


def test_a_bucket_holds_a_minutes_worth_and_says_when_to_come_back() -> None:
    bucket = Bucket(3.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 20.0]
    assert bucket.take(10.0) == pytest.approx(10.0)
    assert bucket.take(20.0) == 0.0
    bucket.give_back()
    assert bucket.take(20.0) == 0.0
    assert [bucket.take(1e6) for _ in range(4)].count(0.0) == 3
    slow = Bucket(0.5, 0.0)
    assert (slow.take(0.0), slow.take(0.0)) == (0.0, 120.0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_too_many_requests_a_minute_are_429_in_the_form_of_the_api(path: str) -> None:
    async with served(declared=two_tenants(requests_per_minute=2.0)) as served_:
        body = {"model": "simulated", "max_tokens": 5, "messages": [{"role": "user", "content": "/say a"}]}
        answers = [await served_.post(path, body, x_api_key=ACME) for _ in range(3)]
        assert [status for status, _, _ in answers] == [200, 200, 429]
        _, told, headers = answers[-1]
        assert told["error"]["type"] == "rate_limit_error"
        assert 1 <= int(headers["Retry-After"]) <= 30
        assert (await served_.post(path, body, x_api_key=BOLT))[0] == 200


async def test_an_attached_retry_is_charged_once() -> None:
    async with served(SLOW, declared=two_tenants(requests_per_minute=2.0)) as served_:
        asked = [served_.chat("no meaning", program="p", max_tokens=20, key=ACME) for _ in range(2)]
        assert [status for status, _, _ in await asyncio.gather(*asked)] == [200, 200]
        assert (await served_.chat("/say b", program="p", key=ACME))[0] == 200
        assert (await served_.chat("/say c", program="p", key=ACME))[0] == 429
        assert (await account(served_))["charges"]["calls_finished"] == 2


async def test_too_many_calls_at_once_are_429_and_a_client_library_comes_back() -> None:
    async with served(SLOW, declared=two_tenants(concurrent_calls=1)) as served_:
        headers = {"Authorization": f"Bearer {ACME}"}
        async with streaming(served_, "no meaning", "first", max_tokens=400, extra_headers=headers) as first:
            await data_line(first)
            status, body, told = await served_.chat("/say b", program="second", key=ACME)
            assert (status, body["error"]["code"], told["Retry-After"]) == (429, "rate_limit_exceeded", "1")
            assert (await served_.chat("/say b", key=BOLT))[0] == 200
            assert set(await served_.programs(ACME)) == {"first"}
            statuses: list[int] = []

            async def seen(response: Any) -> None:
                statuses.append(response.status_code)

            async with AsyncOpenAI(base_url=f"{served_.url}/v1", api_key=ACME, max_retries=8) as client:
                client._client.event_hooks = {"response": [seen]}
                messages: Any = [{"role": "user", "content": "/say at last"}]
                again = asyncio.create_task(
                    client.chat.completions.create(model="simulated", messages=messages)
                )
                await until(lambda: 429 in statuses, "it is refused")
                first.close()
                answer = await again
        assert answer.choices[0].message.content == "at last"
        assert (await account(served_))["live_calls"] == 0


async def test_what_was_refused_for_being_one_too_many_finds_its_program_again() -> None:
    async with served(SLOW, declared=two_tenants(concurrent_calls=1)) as served_:
        _, body, headers = await served_.chat("/say a longer answer than that of a word or two", key=ACME)
        talk = [
            {"role": "user", "content": "/say a longer answer than that of a word or two"},
            body["choices"][0]["message"],
            {"role": "user", "content": "/say b"},
        ]
        other = {"Authorization": f"Bearer {ACME}"}
        async with streaming(served_, "no meaning", "other", max_tokens=400, extra_headers=other) as stream:
            await data_line(stream)
            assert (await served_.chat("", messages=talk, key=ACME))[0] == 429
        await until(lambda: not served_.steps[0].has_work, "the other one goes on")
        _, _, again = await served_.chat("", messages=talk, key=ACME)
        assert again["x-agentsched-program"] == headers["x-agentsched-program"]


async def test_terms_reach_the_core(tmp_path: Path) -> None:
    log = tmp_path / "log"
    terms: dict[str, Any] = {"weight": 2.5, "priority": 3, "deadline_s": 77.0}
    async with served(declared=two_tenants(**terms), log=log) as served_:
        await served_.chat("/say a", program="p", key=ACME)
        await served_.post(
            "/v1/chat/completions",
            {"model": "simulated", "messages": [{"role": "user", "content": "/say b"}]},
            x_api_key=ACME,
            x_agentsched_program="q",
            x_agentsched_deadline_s="5",
        )
        await served_.chat("/say a", program="p", key=BOLT)
    with log.open("rb") as lines:
        opened = [e.event for e in read(lines)[1] if isinstance(e.event, ev.ProgramOpened)]
    assert opened == [
        ev.ProgramOpened(program="//acme/p", tenant="acme", **terms),
        ev.ProgramOpened(program="//acme/q", tenant="acme", **(terms | {"deadline_s": 5.0})),
        ev.ProgramOpened(program="//bolt/p", tenant="bolt"),
    ]


async def test_use_is_charged_to_who_used_it_and_shown_to_them_and_to_admins() -> None:
    async with served(declared=two_tenants(slo_ttft_s=1000.0)) as served_:
        for number in range(2):
            await served_.chat(f"/say {number}" + "x" * 400, program="p", key=ACME)
        await served_.chat("/say b", key=BOLT)
        mine, theirs = (await account(served_))["charges"], (await account(served_, BOLT))["charges"]
        assert (mine["calls_finished"], mine["slo_met"], mine["slo_missed"]) == (2, 2, 0)
        assert (theirs["calls_finished"], theirs["slo_met"], theirs["slo_missed"]) == (1, 0, 0)
        assert mine["prompt_tokens"] > 800 > theirs["prompt_tokens"] > 0
        assert mine["output_tokens"] > 800

        async def held() -> bool:
            return bool((await account(served_))["charges"]["kv_token_s"] > 0)

        await until(held, "KV that is held is charged")
        _, listed, _ = await served_.ask("GET", "/agentsched/admin/tenants", x_api_key=ADMIN_KEY)
        by_name = {each["account"]["tenant"]: each["account"] for each in listed["tenants"]}
        assert set(by_name) == {"acme", "bolt", "default"}
        assert by_name["acme"]["charges"]["calls_finished"] == 2


async def test_an_aborted_call_is_counted_as_such() -> None:
    async with served(SLOW, declared=two_tenants()) as served_:
        headers = {"Authorization": f"Bearer {ACME}"}
        async with streaming(served_, "no meaning", "p", max_tokens=400, extra_headers=headers) as stream:
            await data_line(stream)
            assert (await account(served_))["live_calls"] == 1

        async def over() -> bool:
            told = await account(served_)
            return (told["charges"]["calls_aborted"], told["live_calls"]) == (1, 0)

        await until(over, "it is counted")
