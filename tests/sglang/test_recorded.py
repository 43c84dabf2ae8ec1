"""Recorded outputs on a real SGLang server: what is emitted, and the KV that is left behind."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import pytest

from agentsched.engines.sglang.recorded import PROCESSOR, fields, parameters
from agentsched.workloads.replayed import Server, replay
from agentsched.workloads.scripts import Script, Turn
from agentsched.workloads.sglang_server import SglangServer
from tests.sglang.serving import Pilot, before, body, prompt

pytestmark = pytest.mark.timeout(300)


def recorded(tokens: int, seed: int) -> list[int]:
    return Random(seed).choices(range(10, 500), k=tokens)


async def emitted(
    pilot: Pilot, context: list[int], output: list[int], **sampling: Any
) -> tuple[list[int], int]:
    """By SGLang's own API, which tells tokens; and how many of the prompt were cached."""
    asked = {
        "input_ids": context,
        "custom_logit_processor": PROCESSOR,
        "sampling_params": {
            "max_new_tokens": len(output),
            "ignore_eos": True,
            "custom_params": parameters(output),
            **sampling,
        },
    }
    async with pilot.http.post(pilot.server.url + "/generate", json=asked) as answer:
        said = await answer.json()
        assert answer.status == 200, said
        return said["output_ids"], said["meta_info"]["cached_tokens"]


async def test_an_output_is_the_recorded_one_and_the_next_turn_finds_all_of_its_kv(pilot: Pilot) -> None:
    context = prompt(700, 1)
    for turn in range(4):
        output = recorded(60, turn)
        said, cached = await emitted(pilot, context, output, temperature=0.0 if turn % 2 else 1.0)
        assert said == output
        # The last token was emitted, but never computed; the first call has nothing to find.
        assert cached == (len(context) - 31 if turn else 0)
        context = context + output + prompt(30, 50 + turn)


async def test_in_a_batch_each_call_says_its_own(pilot: Pilot) -> None:
    """Beside calls without a recording, and of prompts that are computed in parts."""
    lengths = (2_100, 300, 20, 301)
    outputs = [recorded(40 + 7 * seed, seed) for seed in range(len(lengths))]
    free = asyncio.create_task(pilot.call("free", 200, seed=30, output=30))
    found = await asyncio.gather(
        *(
            emitted(pilot, prompt(tokens, 20 + seed), output)
            for seed, (tokens, output) in enumerate(zip(lengths, outputs, strict=True))
        ),
    )
    await free
    assert [said for said, _ in found] == outputs


async def test_a_call_that_loses_its_place_goes_on_where_it_was(pilot: Pilot) -> None:
    """SGLang takes its KV, and computes it anew with the output so far in the prompt."""
    output = recorded(40, 1)
    async with pilot.slowly(0.02):
        call = asyncio.create_task(emitted(pilot, prompt(300, 40), output))
        await pilot.sees(lambda report: report.running == 1, "it runs")
        await pilot.post("/pause_generation", {"mode": "retract"})
        await pilot.sees(lambda report: (report.running, report.queued) == (0, 1), "it is taken back")
        await pilot.post("/continue_generation", {})
        said, _ = await call
    assert said == output


async def test_a_request_without_its_tokens_ends_nothing(pilot: Pilot) -> None:
    bare = body(50) | {"custom_logit_processor": PROCESSOR}
    await pilot.post("/v1/completions", bare)
    await pilot.post("/v1/completions", bare | {"custom_params": parameters([])})
    await pilot.post("/v1/completions", bare | {"custom_params": parameters([-1, 10**6])})


async def test_by_way_of_the_daemon_it_is_the_recorded_one_too(server: SglangServer, pilot: Pilot) -> None:
    output = recorded(20, 1)
    async with before(server) as served:
        (engine,) = served.daemon.engines.values()
        assert engine.capabilities.recorded_outputs
        asked = body(100, stream=True, return_token_ids=True) | fields(output)
        told: list[int] = []
        async with served.http.post(served.url + "/v1/completions", json=asked) as answer:
            assert answer.status == 200
            async for line in answer.content:
                if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                    told += json.loads(line[6:])["choices"][0]["token_ids"]
    assert told == output


async def test_replayed_agents_compute_nothing_twice_where_there_is_room(
    server: SglangServer, pilot: Pilot
) -> None:
    script = Script("p", 0.0, tuple(Turn(300 if not turn else 40, 25, 0.05) for turn in range(5)))
    async with before(server) as served:
        where = Server(url=served.url, model="tiny", scheduled=True)
        made = await replay(where, [script], concurrency=1, ended=lambda *_: None)
    assert [call.cached_tokens for call in made.calls] == [0, 324, 389, 454, 519]
    assert made.total("recomputed_tokens") == 0
