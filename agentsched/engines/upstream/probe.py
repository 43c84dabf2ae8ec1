"""What an upstream server tells of itself, where it does.

SGLang: ``/get_server_info`` has its arguments and ``max_total_num_tokens``, the KV that it has room for. Its
radix cache backend says whether our plugin is in it, and its own port where the plugin's socket is.
vLLM: the metric ``vllm:cache_config_info`` has blocks and their size. Both name ``max_model_len`` in
``/v1/models``. Nothing is tried but reading; a server that has none of these answers 404 and is none the
worse.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from agentsched.engines.sglang.plugin import NAME as PLUGIN
from agentsched.engines.upstream.pool import Pool, fetch
from agentsched.engines.upstream.wire import Header

PROBE_S = 10.0
_CACHE_CONFIG = re.compile(rb"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
_LABEL = re.compile(rb'(\w+)="([^"]*)"')


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a server; 0 where it does not say. ``kind``: ``sglang``, ``vllm`` or ``http``.
    ``plugin_port``: the HTTP port of the server itself, if our plugin is in it."""

    kind: str = "http"
    capacity_tokens: int = 0
    block_tokens: int = 1
    max_running: int = 0
    max_context_tokens: int = 0
    plugin_port: int = 0


async def is_up(pool: Pool, headers: list[Header], timeout_s: float) -> bool:
    """Whether the server takes calls, by ``/health``. One that has no such path but answers is up.

    Raises ``UpstreamFault`` where it does not answer.
    """
    return (await fetch(pool, "/health", headers, timeout_s)).status < 500


async def probe(pool: Pool, headers: list[Header]) -> Told:
    """Ask the server what it is. Raises ``UpstreamFault``."""
    context_tokens = await _context_tokens(pool, headers)
    info = await fetch(pool, "/get_server_info", headers, PROBE_S)
    if info.status == 200 and (found := _of_sglang(info.body)) is not None:
        return msgspec.structs.replace(found, max_context_tokens=context_tokens)
    metrics = await fetch(pool, "/metrics", headers, PROBE_S)
    if metrics.status == 200 and (found := _of_vllm(metrics.body)) is not None:
        return msgspec.structs.replace(found, max_context_tokens=context_tokens)
    return Told(max_context_tokens=context_tokens)


async def _context_tokens(pool: Pool, headers: list[Header]) -> int:
    models = _object((await fetch(pool, "/v1/models", headers, PROBE_S)).body).get("data")
    told = [_count(model.get("max_model_len")) for model in models or () if isinstance(model, dict)]
    return max(told, default=0)


def _of_sglang(body: bytes) -> Told | None:
    info = _object(body)
    capacity_tokens = _count(info.get("max_total_num_tokens"))
    if not capacity_tokens:
        return None
    return Told(
        kind="sglang",
        capacity_tokens=capacity_tokens,
        block_tokens=_count(info.get("page_size")) or 1,
        max_running=_count(info.get("max_running_requests")),
        plugin_port=_count(info.get("port")) if info.get("radix_cache_backend") == PLUGIN else 0,
    )


def _of_vllm(text: bytes) -> Told | None:
    """Several engines behind one server (data parallel) have a line each."""
    found = [dict(_LABEL.findall(line)) for line in _CACHE_CONFIG.findall(text)]
    blocks = [_number(labels.get(b"num_gpu_blocks")) for labels in found]
    sizes = [_number(labels.get(b"block_size")) for labels in found]
    if not found or not all(blocks) or not all(sizes):
        return None
    capacity_tokens = sum(count * size for count, size in zip(blocks, sizes, strict=True))
    return Told(kind="vllm", capacity_tokens=capacity_tokens, block_tokens=max(sizes))


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _number(text: bytes | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0
