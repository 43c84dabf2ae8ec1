"""Clients send the running program's id, looked up at each request."""

import asyncio

import httpx
import pytest
from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI

from agentsched.sdk import instrument, program
from tests.sdk.recording import Recording


def _ask(client: OpenAI) -> None:
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])


def _programs(daemon: Recording) -> list[str | None]:
    """Of all requests that brought no events."""
    assert daemon.flush()
    return [
        seen.get("x-agentsched-program")
        for seen in daemon.headers
        if "python-urllib" not in seen.get("user-agent", "").lower()
    ]


def _sent(daemon: Recording) -> list[str | None]:
    return [
        seen.get("x-agentsched-program") for seen in daemon.headers if "openai" in seen["user-agent"].lower()
    ]


def test_a_sync_client_follows_the_running_program(daemon: Recording) -> None:
    with instrument(OpenAI(base_url=f"{daemon.url}/v1", api_key="none")) as client:
        instrument(client)
        _ask(client)
        with program("a", id="a-1"):
            _ask(client)
            with program("b", id="b-1"):
                _ask(client.with_options(timeout=5))
            _ask(client)
    assert _sent(daemon) == [None, "a-1", "b-1", "a-1"]


async def test_an_async_client_serves_many_programs_at_once(daemon: Recording) -> None:
    async with instrument(AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none")) as client:

        async def run(identity: str) -> None:
            with program("a", id=identity):
                await asyncio.sleep(0)
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": identity}]
                )

        await asyncio.gather(*(run(f"p{number}") for number in range(4)))
    assert sorted(str(header) for header in _sent(daemon)) == ["p0", "p1", "p2", "p3"]


def test_anthropics_client_follows_it_too(daemon: Recording) -> None:
    with instrument(Anthropic(base_url=daemon.url, api_key="none")) as client, program("a", id="a-1"):
        client.post("/v1/messages", cast_to=object, body={})
    assert _programs(daemon) == ["a-1"]


async def test_bare_httpx_clients_follow_it_sync_and_async(daemon: Recording) -> None:
    with program("a", id="a-1"):
        with instrument(httpx.Client()) as sync:
            sync.post(daemon.url, json={})
        async with instrument(httpx.AsyncClient()) as client:
            await client.post(daemon.url, json={})
    assert _programs(daemon) == ["a-1", "a-1"]


def test_what_has_a_client_inside_is_found(daemon: Recording) -> None:
    pytest.importorskip("langchain_openai")
    from langchain_openai import ChatOpenAI

    model = instrument(ChatOpenAI(model="m", base_url=f"{daemon.url}/v1", api_key="none"))
    with program("a", id="a-1"):
        model.invoke("hello")
    assert _programs(daemon) == ["a-1"]


async def test_a_child_is_announced_before_its_first_call(daemon: Recording) -> None:
    """Else its call would make it known, without its parent, before the event does."""
    async with instrument(AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none")) as client:
        with program("outer"):
            for number in range(20):
                with program("inner", id=f"inner-{number}"):
                    await client.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": "x"}]
                    )
                    known = {event["program"] for event in daemon.events if event["event"] == "ProgramOpened"}
                    assert f"inner-{number}" in known


def test_other_clients_are_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"headers\(\)"):
        instrument(object())
