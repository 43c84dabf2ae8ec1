"""Many programs at once before a real SGLang server, with KV for a quarter of them."""

from __future__ import annotations

import asyncio

import pytest

from agentsched.workloads.replayed import Server, replay
from agentsched.workloads.scripts import Script, Turn
from agentsched.workloads.sglang_server import SglangServer
from tests.daemon.serving import Served
from tests.sglang.serving import POOL_TOKENS, Pilot, before, body, first_token

pytestmark = pytest.mark.timeout(300)

PROGRAMS = 50


def script(number: int) -> Script:
    turns = tuple(Turn(160 if not turn else 60, 8, 0.05) for turn in range(3))
    return Script(f"crowd-{number}", 0.0, turns)


async def at_rest(pilot: Pilot) -> None:
    """Nothing runs or waits, and all KV is accounted for."""
    await pilot.sees(lambda report: report.running == report.queued == 0, "nothing runs")
    report = await pilot.look()
    held_back_tokens = POOL_TOKENS - report.free_tokens - report.evictable_tokens
    assert 0 <= held_back_tokens <= sum(pilot.held.values())


async def test_fifty_programs_at_once_all_come_to_their_ends(server: SglangServer, pilot: Pilot) -> None:
    scripts = [script(number) for number in range(PROGRAMS)]
    async with before(server) as served:
        where = Server(url=served.url, model="tiny", scheduled=True)
        ends: list[int] = []
        made = await replay(where, scripts, concurrency=PROGRAMS, ended=lambda _, count: ends.append(count))
        assert await served.programs() == {}
    assert len(made.calls) == 3 * PROGRAMS
    assert ends == list(range(1, PROGRAMS + 1))
    assert made.total("output_tokens") == 3 * PROGRAMS * 8
    last = {call.program: call for call in made.calls}
    assert {call.prompt_tokens for call in last.values()} == {160 + 8 + 60 + 8 + 60}
    assert made.total("recomputed_tokens") < made.context_tokens() / 2, "programs found their KV again"
    await at_rest(pilot)


async def test_those_who_stay_get_their_answers_when_others_leave(server: SglangServer, pilot: Pilot) -> None:
    async def client(served: Served, number: int) -> bytes:
        headers = {"x-agentsched-program": f"leaver-{number}"}
        asked = body(120, seed=200 + number, output=60, stream=True)
        async with served.http.post(served.url + "/v1/completions", json=asked, headers=headers) as answer:
            assert answer.status == 200
            await first_token(answer)
            return b"" if number % 2 else await answer.content.read()

    async with before(server) as served:
        answers = await asyncio.gather(*(client(served, number) for number in range(20)))
    assert all(answer.rstrip().endswith(b"data: [DONE]") for answer in answers[::2])
    assert not any(answers[1::2])
    await at_rest(pilot)
