"""Agents of a workload as clients of a server over HTTP: each program's calls and gaps, in real time.

Prompts are tokens, made up from the program's name, so that programs have in common what their scripts say
and nothing else. What a call is to say is settled before it is sent, and the server is made to emit it
(``engines/sglang/recorded.py``): so the next prompt can hold what was computed, without asking, and the KV
that a call leaves behind is that of the recorded run.

What was recomputed is counted here, in the same way for all servers: tokens of a prompt that an earlier call
of the program had computed (its prompt and its output but for the last token), as far as they are not cached.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp

from agentsched.engines.sglang.recorded import fields
from agentsched.sdk.programs import HEADER
from agentsched.workloads.scripts import Piece, Script, Turn

FIRST_TOKEN, LAST_TOKEN = 10, 500
"""Of the vocabulary those that stand for text."""

SILENCE_S = 900.0


class ReplayFailed(Exception):
    """A call was not answered as it should be; the message says which and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One call. Times are seconds from the start of the replay; tokens are as the server counted them."""

    program: str
    arrived_s: float
    first_token_s: float
    ended_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    recomputed_tokens: int


@dataclass(slots=True)
class Replayed:
    """What came of a replay."""

    calls: list[Heard] = field(default_factory=list)

    def completion_times(self) -> dict[str, float]:
        """TCT of each program, seconds."""
        begun: dict[str, float] = {}
        ended: dict[str, float] = {}
        for call in self.calls:
            begun[call.program] = min(call.arrived_s, begun.get(call.program, call.arrived_s))
            ended[call.program] = max(call.ended_s, ended.get(call.program, 0.0))
        return {program: ended[program] - begun[program] for program in begun}

    def context_tokens(self) -> int:
        """Final contexts, summed."""
        last: dict[str, int] = {}
        for call in self.calls:
            last[call.program] = call.prompt_tokens + call.output_tokens
        return sum(last.values())

    def returns_s(self) -> list[float]:
        """Times to the first token of all calls but each program's first, seconds."""
        seen: set[str] = set()
        samples = []
        for call in sorted(self.calls, key=lambda call: call.arrived_s):
            if call.program in seen:
                samples.append(call.first_token_s - call.arrived_s)
            seen.add(call.program)
        return samples

    def total(self, name: str) -> int:
        """Of one of the counts of tokens, over all calls."""
        return sum(getattr(call, name) for call in self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the agents call. ``scheduled``: it is agentsched, and is told when a program ends, as the SDK
    does."""

    url: str
    model: str
    scheduled: bool


def prompts(script: Script) -> Iterator[tuple[Turn, list[int], list[int]]]:
    """Each turn with its prompt and its output. Where the trace spells the next prompt, and that goes on from
    this one, the output is what it has there; else it is made up, and the next prompt has it."""
    prefix = [token for piece in script.prefix for token in _tokens(f"shared {piece.key}", piece.tokens)]
    context: list[int] = []
    for number, turn in enumerate(script.turns):
        if turn.pieces:
            context = _spelt(turn)
        else:
            if turn.fresh or not number:
                context = list(prefix)
            grown = turn.new_tokens - (len(prefix) if turn.fresh or not number else 0)
            context = context + _tokens(f"{script.program} {number}", grown)
        output = _tokens(f"{script.program} {number} output", turn.output_tokens)
        after = _spelt(script.turns[number + 1]) if number + 1 < len(script.turns) else []
        if after[: len(context)] == context:
            said = after[len(context) :][: len(output)]
            output = said + output[len(said) :]
        yield turn, context, output
        context = context + output


def _spelt(turn: Turn) -> list[int]:
    return [token for piece in turn.pieces for token in _piece(piece)]


def _piece(piece: Piece) -> list[int]:
    return _tokens(f"piece {piece.key}", piece.tokens)


def _tokens(seed: str, count: int) -> list[int]:
    return Random(seed).choices(range(FIRST_TOKEN, LAST_TOKEN), k=count)


async def replay(
    server: Server, scripts: Sequence[Script], *, concurrency: int, ended: Callable[[float, int], None]
) -> Replayed:
    """Play the scripts in their order, so many at once: when one ends, the next begins. ``ended`` hears of
    each that did: seconds from the start, and how many. Raises ``ReplayFailed``."""
    made, begun_s = Replayed(), time.monotonic()
    waiting = iter(scripts)
    done = 0

    async def place(http: aiohttp.ClientSession) -> None:
        nonlocal done
        for script in waiting:
            await _Agent(server, http, script, begun_s, made).run()
            done += 1
            ended(time.monotonic() - begun_s, done)

    timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(place(http))
        except* (ReplayFailed, aiohttp.ClientError) as errors:
            raise ReplayFailed(str(errors.exceptions[0])) from errors
    return made


class _Agent:
    """One program."""

    def __init__(
        self, server: Server, http: aiohttp.ClientSession, script: Script, begun_s: float, made: Replayed
    ) -> None:
        self._server, self._http, self._script = server, http, script
        self._begun_s, self._made = begun_s, made
        self._computed: list[int] = []

    async def run(self) -> None:
        for turn, prompt, output in prompts(self._script):
            await self._call(prompt, output)
            self._computed = prompt + output[:-1]
            await asyncio.sleep(turn.gap_s)
        if self._server.scheduled:
            url = f"{self._server.url}/agentsched/v1/programs/{self._script.program}"
            async with self._http.delete(url) as answer:
                if answer.status >= 400:
                    raise ReplayFailed(f"{self._script.program} cannot be ended: {await answer.text()}")

    async def _call(self, prompt: list[int], output: list[int]) -> None:
        body = {
            "model": self._server.model,
            "prompt": prompt,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | fields(output)
        arrived_s = self._now()
        headers = {HEADER: self._script.program}
        async with self._http.post(
            f"{self._server.url}/v1/completions", json=body, headers=headers
        ) as answer:
            if answer.status != 200:
                raise ReplayFailed(f"{self._script.program}: {answer.status}: {await answer.text()}")
            first_token_s, usage = await self._read(answer)
        if usage.get("completion_tokens") != len(output) or usage.get("prompt_tokens") != len(prompt):
            raise ReplayFailed(
                f"{self._script.program}: asked for {len(output)} tokens after {len(prompt)}, and the "
                f"server counted {usage}"
            )
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        self._made.calls.append(
            Heard(
                program=self._script.program,
                arrived_s=arrived_s,
                first_token_s=first_token_s,
                ended_s=self._now(),
                prompt_tokens=len(prompt),
                cached_tokens=cached,
                output_tokens=len(output),
                recomputed_tokens=max(0, _common(self._computed, prompt) - cached),
            )
        )

    async def _read(self, answer: aiohttp.ClientResponse) -> tuple[float, dict[str, Any]]:
        """When the first token came, and the usage. Raises ``ReplayFailed``."""
        first_s: float | None = None
        usage: dict[str, Any] = {}
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            told = json.loads(line[6:])
            if "error" in told:
                raise ReplayFailed(f"{self._script.program}: {told['error']}")
            if first_s is None and told.get("choices"):
                first_s = self._now()
            usage = told.get("usage") or usage
        if first_s is None or not usage:
            raise ReplayFailed(f"{self._script.program}: an answer without tokens or usage")
        return first_s, usage

    def _now(self) -> float:
        return time.monotonic() - self._begun_s


def _common(old: list[int], new: list[int]) -> int:
    """How many tokens both begin with. The last of a prompt is always computed, so it does not count."""
    most = min(len(old), len(new) - 1)
    if old[:most] == new[:most]:
        return most
    return next(at for at in range(most) if old[at] != new[at])
