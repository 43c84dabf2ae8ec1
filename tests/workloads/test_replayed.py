"""Agents played over HTTP against a server that answers as it is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agentsched.workloads.replayed import ReplayFailed, Server, prompts, replay
from agentsched.workloads.scripts import Piece, Script, Turn

TURNS = (Turn(40, 5, 0.0), Turn(10, 3, 0.0), Turn(20, 4, 0.0, fresh=True))


@dataclass
class Double:
    """``cached``: of each prompt; ``short``: outputs lack so many tokens."""

    cached: int = 0
    short: int = 0
    status: int = 200
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append((request.headers["x-agentsched-program"], body))
        if self.status != 200:
            return web.json_response({"error": "no"}, status=self.status)
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": body["max_tokens"] - self.short,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }
        events = [{"choices": [{"text": "a"}]}, {"choices": [], "usage": usage}]
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return web.Response(text=f"{lines}data: [DONE]\n\n", content_type="text/event-stream")

    async def end(self, request: web.Request) -> web.Response:
        self.ended.append(request.match_info["name"])
        return web.Response(status=204)


@asynccontextmanager
async def serving(double: Double, *, scheduled: bool = False) -> AsyncIterator[Server]:
    app = web.Application()
    app.router.add_post("/v1/completions", double.answer)
    app.router.add_delete("/agentsched/v1/programs/{name}", double.end)
    async with TestServer(app) as server:
        yield Server(url=str(server.make_url("")).rstrip("/"), model="m", scheduled=scheduled)


def nobody(now: float, count: int) -> None:
    """Who does not care how far it is."""


def test_a_prompt_goes_on_from_what_was_computed_until_it_begins_anew() -> None:
    made = list(prompts(Script("p", 0.0, TURNS)))
    (_, first, output), (_, second, _), (_, third, _) = made
    assert [len(prompt) for _, prompt, _ in made] == [40, 55, 20]
    assert second[:45] == first + output
    assert third[:10] != first[:10]


def test_what_a_trace_spells_is_what_was_said_before_it() -> None:
    one, two, other = (Piece(name, 16) for name in ("one", "two", "other"))
    turns = (
        Turn(0, 20, 0.0, pieces=(one,)),
        Turn(0, 4, 0.0, pieces=(one, two)),
        Turn(0, 4, 0.0, pieces=(other,)),
    )
    (_, first, output), (_, second, end), (_, third, _) = prompts(Script("p", 0.0, turns))
    assert len(output) == 20, "the next prompt has but 16 of them; the others are made up"
    assert second == first + output[:16]
    assert len(end) == 4
    assert third[:4] != end


def test_programs_have_their_prefix_in_common_and_nothing_else() -> None:
    prefix = (Piece("system", 16),)
    (_, one, _), (_, two, _) = (
        next(iter(prompts(Script(name, 0.0, TURNS, prefix=prefix)))) for name in ("one", "two")
    )
    assert len(one) == len(two) == 40
    assert one[:16] == two[:16]
    assert one[16:] != two[16:]


async def test_what_was_computed_before_and_is_not_cached_counts_as_recomputed() -> None:
    double = Double(cached=7)
    async with serving(double, scheduled=True) as server:
        made = await replay(server, [Script("p", 0.0, TURNS)], concurrency=1, ended=nobody)
    # Of the first output the last token was never computed; the third prompt has nothing of the second.
    assert [call.recomputed_tokens for call in made.calls] == [0, 40 + 4 - 7, 0]
    assert made.total("cached_tokens") == 21
    assert made.context_tokens() == 24
    assert double.ended == ["p"]
    outputs = [body["custom_params"]["agentsched_recorded"] for _, body in double.asked]
    assert [len(output) for output in outputs] == [5, 3, 4]
    assert double.asked[1][1]["prompt"][:45] == double.asked[0][1]["prompt"] + outputs[0]


async def test_so_many_live_at_once_and_the_next_begins_when_one_ends() -> None:
    double, ends = Double(), list[int]()
    scripts = [Script(f"p{number}", 0.0, TURNS[:2]) for number in range(5)]
    async with serving(double) as server:
        made = await replay(server, scripts, concurrency=2, ended=lambda _, count: ends.append(count))
    assert ends == [1, 2, 3, 4, 5]
    assert {name for name, _ in double.asked[:2]} == {"p0", "p1"}
    assert set(made.completion_times()) == {script.program for script in scripts}
    assert len(made.returns_s()) == 5
    assert double.ended == [], "a server that is not ours is not told"


@pytest.mark.parametrize(("double", "says"), [(Double(short=1), "counted"), (Double(status=503), "503")])
async def test_an_answer_that_is_not_what_was_asked_for_ends_the_replay(double: Double, says: str) -> None:
    async with serving(double) as server:
        with pytest.raises(ReplayFailed, match=says):
            await replay(server, [Script("p", 0.0, TURNS)], concurrency=1, ended=nobody)
