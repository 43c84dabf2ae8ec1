"""Agents that use the client library of OpenAI, go on when their daemon dies, and remember what they got."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import openai

PROGRAM_HEADER = "x-agentsched-program"
PAUSE_S = 0.05
_GONE = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError, httpx.HTTPError)


@dataclass(frozen=True, slots=True)
class Got:
    """One answer: whose program's the daemon said it was, when it was there, and what it took."""

    program: str
    at_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass
class Run:
    """One run of an agent. ``stated``: it says whose its calls are; else the daemon has to find out."""

    name: str
    stated: bool
    answers: list[Got] = field(default_factory=list)
    closed_s: float | None = None
    done: bool = False


class Agents:
    """``count`` agents, each of which begins a new run when one has ended, until ``stop`` is set."""

    def __init__(self, url: str, count: int, seed: int) -> None:
        self.runs: list[Run] = []
        self.answers: list[Got] = []
        """Of all runs, in the order in which they came."""
        self.stop = asyncio.Event()
        self.tries = 0
        self._url = url
        self._seed = seed
        self._tasks = [
            asyncio.create_task(self._live(Random(f"{seed}/{number}"), number), name=f"agent {number}")
            for number in range(count)
        ]

    def cancel(self) -> None:
        """End them at once."""
        for task in self._tasks:
            task.cancel()

    def check(self) -> None:
        """Raises what an agent died of."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def end(self, patience_s: float) -> None:
        """Let every run come to its end. Raises ``TimeoutError``, and what an agent died of."""
        self.stop.set()
        async with asyncio.timeout(patience_s):
            await asyncio.gather(*self._tasks)

    async def _live(self, random: Random, number: int) -> None:
        turn = 0
        # Libraries wait for up to 8 s between tries; half of the agents leave it to the library, the others
        # try again at once, so that there is load soon after each start.
        retries = 8 if number % 4 < 2 else 0
        async with openai.AsyncOpenAI(
            base_url=f"{self._url}/v1", api_key="none", max_retries=retries, timeout=60.0
        ) as client:
            while not self.stop.is_set():
                run = Run(f"run-{self._seed}-{number}-{turn}", stated=number % 2 == 0)
                self.runs.append(run)
                await self._run(client, run, random)
                turn += 1

    async def _run(self, client: openai.AsyncOpenAI, run: Run, random: Random) -> None:
        headers = {PROGRAM_HEADER: run.name} if run.stated else {}
        task = f'/call bash {{"command": "{run.name}"}}'
        system = {"role": "system", "content": "You are an agent." + " " * random.randrange(800)}
        messages: list[Any] = [system, {"role": "user", "content": task}]
        for _ in range(random.randint(2, 8)):
            message = await self._answer(client, run, messages, headers, stream=random.random() < 0.5)
            messages.append(message)
            for call in message["tool_calls"]:
                result = "." * random.randrange(400)
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
            messages.append({"role": "user", "content": task})
            await asyncio.sleep(random.expovariate(10.0))
        if random.random() < 0.5:
            await self._close(client, run)
        run.done = True

    async def _answer(
        self,
        client: openai.AsyncOpenAI,
        run: Run,
        messages: list[Any],
        headers: dict[str, str],
        *,
        stream: bool,
    ) -> dict[str, Any]:
        while True:
            self.tries += 1
            try:
                if stream:
                    return await self._streamed(client, run, messages, headers)
                answer = await client.chat.completions.with_raw_response.create(
                    model="simulated", messages=messages, extra_headers=headers
                )
                whole = answer.parse()
                self._keep(run, answer.headers[PROGRAM_HEADER], whole.usage)
                return whole.choices[0].message.to_dict()
            except _GONE:
                await asyncio.sleep(PAUSE_S)

    async def _streamed(
        self, client: openai.AsyncOpenAI, run: Run, messages: list[Any], headers: dict[str, str]
    ) -> dict[str, Any]:
        request = client.chat.completions.with_streaming_response.create(
            model="simulated",
            messages=messages,
            extra_headers=headers,
            stream=True,
            stream_options={"include_usage": True},
        )
        calls: list[dict[str, Any]] = []
        text, usage = "", None
        async with request as answer:
            async for chunk in await answer.parse():
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    calls += [call.to_dict() for call in choice.delta.tool_calls or ()]
            if usage is None:
                raise httpx.RemoteProtocolError("the stream ended before its end")
            self._keep(run, answer.headers[PROGRAM_HEADER], usage)
        for call in calls:
            call.pop("index", None)
        return {"role": "assistant", "content": text or None, "tool_calls": calls}

    def _keep(self, run: Run, program: str, usage: Any) -> None:
        details = usage.prompt_tokens_details
        cached = details.cached_tokens or 0 if details is not None else 0
        got = Got(program, time.monotonic(), usage.prompt_tokens, cached, usage.completion_tokens)
        run.answers.append(got)
        self.answers.append(got)

    async def _close(self, client: openai.AsyncOpenAI, run: Run) -> None:
        event = {"event": "ProgramClosed", "program": run.answers[-1].program}
        while True:
            try:
                await client.post(
                    f"{self._url}/agentsched/v1/events", body={"events": [event]}, cast_to=object
                )
            except _GONE:
                await asyncio.sleep(PAUSE_S)
            else:
                run.closed_s = time.monotonic()
                return
