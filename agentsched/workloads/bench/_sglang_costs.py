"""What steps cost a real SGLang server, told from outside: by the times of its answers.

The model's shape decides whether a cache is worth anything there. SGLang's attention for CPUs without matrix
instructions (``torch_native``) computes the cached part of a prompt's attention again at each call, which its
kernels for GPUs do not. So ``WIDE`` is a model in which attention is a small part of a prefill, as it is of
an 8B model at these lengths: a prompt that is cached costs next to nothing there, as it should.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import aiohttp

from agentsched.engines.cost import CostProfile, pairs
from agentsched.workloads.fit import Point, Shape, fit_profile, residuals
from agentsched.workloads.sglang_server import SglangServer

WIDE = {
    "hidden_size": 512,
    "intermediate_size": 2_048,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
"""Of ``config.json``: 3.2M parameters in matrices, one head of 16."""

_PREFILLS = ((0, 256), (0, 1_024), (0, 2_048), (2_048, 64), (4_096, 256), (8_192, 64), (8_192, 1_024))
_DECODES = ((1, 4_096), (4, 2_048), (4, 8_192), (8, 4_096))
_DECODED = 16
_ROUNDS = 3
_seeds = itertools.count()


@dataclass(frozen=True, slots=True)
class Costs:
    """``mean_error`` is that of the profile on what it was fitted to; ``warm_share``: what a prompt takes
    that is cached but for its last 64 tokens, over the same prompt with an empty cache."""

    profile: CostProfile
    mean_error: float
    warm_share: float


async def calibrate(server: SglangServer, chunk_tokens: int, say: Callable[[str], None]) -> Costs:
    """Some 20 seconds. The server has room for some 40,000 tokens, and computes nothing else."""
    points: dict[tuple[str, int, int], Point] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http:
        for number in range(_ROUNDS):
            say(f"what steps cost: round {number + 1} of {_ROUNDS}")
            for start, count in _PREFILLS:
                count = min(count, chunk_tokens)
                point = points.setdefault(("prefill", start, count), Point(f"prefill of {count}"))
                point.shapes.append(Shape(prefill_tokens=count, attended=pairs(start, count)))
                point.bursts_s.append(await _prefill(http, server, start, count))
            for rows, context in _DECODES:
                point = points.setdefault(("decode", rows, context), Point(f"decode of {rows}"))
                point.shapes.append(Shape(decode_rows=rows, decode_context=rows * context))
                point.bursts_s.append(await _decode(http, server, rows, context))
        warm_s = points["prefill", 8_192, 64].seconds
        cold_s = statistics.median([(await _cold(http, server, 8_192 + 64)) for _ in range(2)])
    measured = list(points.values())
    profile = fit_profile(measured, host_tokens_per_s=CostProfile().host_tokens_per_s)
    errors = [group.mean_error for group in residuals(measured, profile)]
    return Costs(profile, statistics.fmean(errors), warm_s / cold_s)


async def _prefill(http: aiohttp.ClientSession, server: SglangServer, start: int, count: int) -> float:
    """Seconds of a prompt whose first ``start`` tokens are cached."""
    head = _fresh(start) if start else []
    if head:
        await _complete(http, server, head, 1)
    return min([(await _timed(http, server, head + _fresh(count))) for _ in range(2)])


async def _cold(http: aiohttp.ClientSession, server: SglangServer, tokens: int) -> float:
    return await _timed(http, server, _fresh(tokens))


async def _timed(http: aiohttp.ClientSession, server: SglangServer, prompt: list[int]) -> float:
    begun_s = time.perf_counter()
    await _complete(http, server, prompt, 1)
    return time.perf_counter() - begun_s


async def _decode(http: aiohttp.ClientSession, server: SglangServer, rows: int, context: int) -> float:
    """Seconds between two tokens where so many rows decode."""
    prompts = [_fresh(context) for _ in range(rows)]
    for prompt in prompts:
        await _complete(http, server, prompt, 1)
    times = await asyncio.gather(*(_complete(http, server, prompt, _DECODED) for prompt in prompts))
    begun_s, ended_s = max(row[0] for row in times), min(row[-1] for row in times)
    gaps = [
        after - before
        for row in times
        for before, after in itertools.pairwise(row)
        if begun_s <= before and after <= ended_s
    ]
    return statistics.median(gaps or [after - before for before, after in itertools.pairwise(times[0])])


async def _complete(
    http: aiohttp.ClientSession, server: SglangServer, prompt: list[int], output: int
) -> list[float]:
    """When each token came."""
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    async with http.post(server.url + "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        return [
            time.perf_counter()
            async for line in answer.content
            if line.startswith(b"data: {") and json.loads(line[6:]).get("choices")
        ]


def _fresh(tokens: int) -> list[int]:
    """Tokens that nobody has sent before."""
    return Random(f"calibration {next(_seeds)}").choices(range(10, 500), k=tokens)
