"""OpenAI clients send the running program's id, looked up at each request."""

import asyncio

import pytest
from openai import AsyncOpenAI, OpenAI

from agentsched.sdk import instrument, program
from tests.sdk.recording import Recording


def _ask(client: OpenAI) -> None:
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])


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


def test_other_clients_are_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"headers\(\)"):
        instrument(object())
