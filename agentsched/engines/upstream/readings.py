"""What a server's metrics say of its KV and its queue, of the Prometheus text that it is polled for.

SGLang counts tokens: ``free`` holds nothing, ``evictable`` is cache. vLLM tells one share, of what running
calls have; all else counts as free there, cache or not. Lines of several ranks or engines are summed up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_LINE = re.compile(rb"^([a-zA-Z_:]+)(?:\{[^}\n]*\})? (\S+)", re.MULTILINE)


class Reading(NamedTuple):
    """Tokens and calls now; ``evicted_tokens`` since the server began, None where it does not tell."""

    free_tokens: int
    evictable_tokens: int
    running: int
    queued: int
    evicted_tokens: int | None = None


class _Sum(NamedTuple):
    total: float
    lines: int


def read_sglang(text: bytes, capacity_tokens: int) -> Reading | None:
    """None before its first batch: it tells nothing until then."""
    names = ("kv_available_tokens", "kv_evictable_tokens", "num_running_reqs", "num_queue_reqs")
    sums = _sums(text, [f"sglang:{name}" for name in (*names, "evicted_tokens_total")])
    found = [sums.get(f"sglang:{name}") for name in names]
    free, evictable, running, queued = (0 if one is None else int(one.total) for one in found)
    if found[0] is None or free + evictable <= 0:
        return None
    evicted = sums.get("sglang:evicted_tokens_total")
    return Reading(free, evictable, running, queued, None if evicted is None else int(evicted.total))


def read_vllm(text: bytes, capacity_tokens: int) -> Reading | None:
    """None if it is not vLLM's."""
    names = ("kv_cache_usage_perc", "num_requests_running", "num_requests_waiting")
    sums = _sums(text, [f"vllm:{name}" for name in names])
    used, running, queued = (sums.get(f"vllm:{name}", _Sum(0.0, 0)) for name in names)
    if not used.lines:
        return None
    free = round(capacity_tokens * (1.0 - min(1.0, used.total / used.lines)))
    return Reading(free, 0, int(running.total), int(queued.total))


def _sums(text: bytes, names: Sequence[str]) -> Mapping[str, _Sum]:
    wanted = {name.encode(): name for name in names}
    found: dict[str, _Sum] = {}
    for name, value in _LINE.findall(text):
        if (known := wanted.get(name)) is not None:
            try:
                number = float(value)
            except ValueError:
                continue
            total, lines = found.get(known, _Sum(0.0, 0))
            found[known] = _Sum(total + number, lines + 1)
    return found
