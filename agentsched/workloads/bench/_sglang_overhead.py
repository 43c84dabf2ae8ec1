"""What the plugin costs SGLang where it has nothing to do: the CPU time of a token, and the same outputs.

Three servers are there at once, of which one is awake and the others are stopped (SIGSTOP), so that only one
runs: ``stock``, which is kept from loading the plugin; ``off``, in which it is loaded, but not asked for;
``alone``, in which its cache is used and no daemon is there, as after a daemon's death. Each round has them
compute the same calls, one server after the other, in an order that turns. CPU time is that of all processes
of a server.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import aiohttp

from agentsched.workloads.bench._sglang_runs import cpu_s
from agentsched.workloads.grid.ratios import Ratio, ratio
from agentsched.workloads.sglang_server import PLUGIN, WITHOUT_PLUGINS, Limits, SglangServer

T = TypeVar("T")

WANT = 0.05
_CALLS, _AT_ONCE = 64, 8
_PROMPT_TOKENS, _OUTPUT_TOKENS = 1_536, 24
_COMPARED, _COMPARED_OUTPUT_TOKENS = 6, 48


@dataclass(slots=True)
class Overhead:
    """CPU seconds a token, by server, one a round; ``same_outputs``: of each server as of stock."""

    cpu_token_s: dict[str, list[float]] = field(default_factory=dict)
    same_outputs: dict[str, bool] = field(default_factory=dict)

    def change(self, name: str) -> Ratio:
        """Of a server's CPU a token over stock's, round by round."""
        ours, stock = (dict(enumerate(self.cpu_token_s[server])) for server in (name, "stock"))
        found = ratio(ours, stock)
        assert found is not None, "computing takes time"
        return found

    def goals(self) -> dict[str, dict[str, Any]]:
        """The whole 95 % interval lies within what is wanted."""
        found: dict[str, dict[str, Any]] = {}
        for name, title in (("off", "plugin not asked for"), ("alone", "no daemon")):
            change = self.change(name)
            bounds = (change.low, change.high)
            found[f"CPU a token over stock SGLang's, {title}"] = {
                "value": round(change.mean, 4),
                "interval": [bound and round(bound, 4) for bound in bounds],
                "want": f"within {1 - WANT:g} to {1 + WANT:g}",
                "met": all(bound is not None and abs(bound - 1) <= WANT for bound in bounds),
            }
            same = self.same_outputs[name]
            found[f"same outputs as stock SGLang, {title}"] = {"value": same, "want": True, "met": same}
        return found

    def figures(self) -> dict[str, Any]:
        return {"cpu_token_s": self.cpu_token_s, "same_outputs": self.same_outputs}


def measure(model: Path, limits: Limits, rounds: int, say: Callable[[str], None]) -> Overhead:
    """Raises ``SglangFailed``."""
    found = Overhead()
    with _servers(model, limits, say) as servers:
        outputs = {name: _awake(server, _compared) for name, server in servers.items()}
        found.same_outputs = {name: told == outputs["stock"] for name, told in outputs.items()}
        names = list(servers)
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                used_s = _awake(servers[name], partial(_load, number=number))
                found.cpu_token_s.setdefault(name, []).append(used_s)
            told = ", ".join(f"{name} {1e6 * values[-1]:.1f}" for name, values in found.cpu_token_s.items())
            say(f"CPU us a token, round {number + 1} of {rounds}: {told}")
    return found


@contextmanager
def _servers(model: Path, limits: Limits, say: Callable[[str], None]) -> Iterator[dict[str, SglangServer]]:
    """All started, and stopped. None outlives the block."""
    servers = {
        "stock": SglangServer(model, (), limits, WITHOUT_PLUGINS),
        "off": SglangServer(model, (), limits),
        "alone": SglangServer(model, PLUGIN, limits),
    }
    with ExitStack() as undo:
        for name, server in servers.items():
            say(f"starting SGLang: {name}")
            undo.callback(server.kill)
            server.start()
            asyncio.run(_computed(server, -1))
            server.signal(signal.SIGSTOP)
        yield servers


def _awake(server: SglangServer, work: Callable[[SglangServer], T]) -> T:
    server.signal(signal.SIGCONT)
    try:
        return work(server)
    finally:
        server.signal(signal.SIGSTOP)


def _load(server: SglangServer, number: int) -> float:
    """CPU seconds a token, prefilled and decoded, of calls of which every second one continues another."""
    assert server.process is not None
    before_s = cpu_s(server.process.pid)
    tokens = asyncio.run(_computed(server, number))
    return (cpu_s(server.process.pid) - before_s) / tokens


async def _computed(server: SglangServer, number: int) -> int:
    rng = Random(f"load {number}")
    heads = [_tokens(rng, _PROMPT_TOKENS) for _ in range(_CALLS // 2)]
    coming = iter([head + _tokens(rng, 64) for head in (*heads, *heads)])
    tokens = 0

    async def place(http: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for prompt in coming:
            said = await _complete(http, server, prompt, _OUTPUT_TOKENS)
            usage = said["usage"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            tokens += usage["prompt_tokens"] - cached + usage["completion_tokens"]

    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(place(http))
    return tokens


def _compared(server: SglangServer) -> list[str]:
    """Outputs of calls that come one after the other, so that no batch depends on when they came."""

    async def texts() -> list[str]:
        rng = Random("compared")
        prompts = [_tokens(rng, 700) for _ in range(_COMPARED // 2)]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as http:
            return [
                (await _complete(http, server, prompt, _COMPARED_OUTPUT_TOKENS))["choices"][0]["text"]
                for prompt in (*prompts, *prompts)
            ]

    return asyncio.run(texts())


async def _complete(http: aiohttp.ClientSession, server: SglangServer, prompt: list[int], output: int) -> Any:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": True}
    async with http.post(server.url + "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        return await answer.json()


def _tokens(rng: Random, count: int) -> list[int]:
    return rng.choices(range(10, 500), k=count)
