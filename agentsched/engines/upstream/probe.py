"""What an upstream server tells of itself, where it does.

SGLang: ``/server_info`` (``/get_server_info`` before 0.5.4) has its arguments, ``max_total_num_tokens``, the
KV that it has room for, and where it publishes KV events. Its radix cache backend says whether our plugin is
in it, and its own port where the plugin's socket is. vLLM: the metric ``vllm:cache_config_info`` has blocks
and their size; its arguments it tells in ``/server_info`` in development mode only. Both name
``max_model_len`` in ``/v1/models``. Nothing is tried but reading; a server that has none of these answers
404 and is none the worse.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from agentsched.engines.sglang.plugin import NAME as PLUGIN
from agentsched.engines.upstream.pool import Pool, fetch
from agentsched.engines.upstream.wire import Header

PROBE_S = 10.0
WILDCARDS = ("*", "0.0.0.0", "::", "[::]")
_CACHE_CONFIG = re.compile(rb"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
_LABEL = re.compile(rb'(\w+)="([^"]*)"')


class EventsAt(msgspec.Struct, frozen=True, kw_only=True):
    """Where KV events are: ZMQ endpoints, one a rank, of what is published and of what is repeated."""

    endpoints: tuple[str, ...]
    replays: tuple[str, ...] = ()
    topic: str = ""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a server; 0, "" and None where it does not say.

    ``kind``: ``sglang``, ``vllm`` or ``http``. ``plugin_port``: the HTTP port of the server itself, if our
    plugin is in it. ``first``: which priorities of requests go first, if it heeds them; ``preempts``: for
    one of a better priority it stops calls that run. ``sessions``: it keeps KV by session. ``cache_report``:
    its ``usage`` says what was cached. ``recorded``: requests may say what it is to emit (our plugin's
    environment has what that takes).
    """

    kind: str = "http"
    version: str = ""
    capacity_tokens: int = 0
    block_tokens: int = 1
    max_running: int = 0
    max_context_tokens: int = 0
    plugin_port: int = 0
    first: Literal["low", "high"] | None = None
    preempts: bool = False
    sessions: bool = False
    metrics: bool = False
    cache_report: bool | None = None
    recorded: bool = False
    events: EventsAt | None = None


async def is_up(pool: Pool, headers: list[Header], timeout_s: float) -> bool:
    """Whether the server takes calls, by ``/health``. One that has no such path but answers is up.

    Raises ``UpstreamFault`` where it does not answer.
    """
    return (await fetch(pool, "/health", headers, timeout_s)).status < 500


async def probe(pool: Pool, headers: list[Header]) -> Told:
    """Ask the server what it is. Raises ``UpstreamFault``."""
    context_tokens = await _context_tokens(pool, headers)
    told = await _told(pool, headers)
    return msgspec.structs.replace(told, max_context_tokens=context_tokens)


async def _told(pool: Pool, headers: list[Header]) -> Told:
    info: dict[str, Any] = {}
    for path in ("/server_info?config_format=json", "/get_server_info"):
        found = await fetch(pool, path, headers, PROBE_S)
        info = _object(found.body) if found.status == 200 else {}
        if (told := of_sglang(info, pool.address.host)) is not None:
            return told
        if info:
            break
    metrics = await fetch(pool, "/metrics", headers, PROBE_S)
    told = of_vllm(metrics.body, info, pool.address.host) if metrics.status == 200 else None
    if told is None:
        return Told()
    version = _object((await fetch(pool, "/version", headers, PROBE_S)).body).get("version")
    return msgspec.structs.replace(told, version=str(version or ""))


async def _context_tokens(pool: Pool, headers: list[Header]) -> int:
    models = _object((await fetch(pool, "/v1/models", headers, PROBE_S)).body).get("data")
    told = [_count(model.get("max_model_len")) for model in models or () if isinstance(model, dict)]
    return max(told, default=0)


def of_sglang(info: dict[str, Any], host: str) -> Told | None:
    """Of its arguments; ``host`` is where it was asked. None if it is no SGLang."""
    capacity_tokens = _count(info.get("max_total_num_tokens"))
    if not capacity_tokens:
        return None
    first: Literal["low", "high"] | None = None
    if info.get("enable_priority_scheduling") is True:
        first = "low" if info.get("schedule_low_priority_values_first") is True else "high"
    plugin = info.get("radix_cache_backend") == PLUGIN
    return Told(
        kind="sglang",
        version=str(info.get("version") or ""),
        capacity_tokens=capacity_tokens,
        block_tokens=_count(info.get("page_size")) or 1,
        max_running=_count(info.get("max_running_requests")),
        plugin_port=_count(info.get("port")) if plugin else 0,
        first=first,
        preempts=first is not None and info.get("disable_priority_preemption") is not True,
        sessions=info.get("enable_session_radix_cache") is True,
        metrics=info.get("enable_metrics") is True,
        cache_report=info.get("enable_cache_report") is True,
        recorded=plugin and info.get("enable_custom_logit_processor") is True,
        events=_published(info.get("kv_events"), host),
    )


def _published(told: Any, host: str) -> EventsAt | None:
    """As SGLang describes it: a port for each rank, on all addresses of the machine or one of them."""
    if not isinstance(told, dict) or told.get("publisher") != "zmq":
        return None
    port = _count(told.get("endpoint_port_base"))
    at = str(told.get("endpoint_host"))
    if not port:
        return None
    at = _bracketed(host) if at in WILDCARDS else at
    ranks = range(_count(told.get("dp_size")) or 1)
    replay = _count(told.get("replay_endpoint_port_base"))
    return EventsAt(
        endpoints=tuple(f"tcp://{at}:{port + rank}" for rank in ranks),
        replays=tuple(f"tcp://{at}:{replay + rank}" for rank in ranks) if replay else (),
        topic=str(told.get("topic") or ""),
    )


def of_vllm(text: bytes, info: dict[str, Any], host: str) -> Told | None:
    """Of its metrics, and its arguments where it tells them. Several engines behind one server (data
    parallel) have a line each. None if it is no vLLM."""
    found = [dict(_LABEL.findall(line)) for line in _CACHE_CONFIG.findall(text)]
    blocks = [_number(labels.get(b"num_gpu_blocks")) for labels in found]
    sizes = [_number(labels.get(b"block_size")) for labels in found]
    if not found or not all(blocks) or not all(sizes):
        return None
    config = _inner(info, "vllm_config")
    scheduling = _inner(config, "scheduler_config")
    by_priority = scheduling.get("policy") == "priority"
    return Told(
        kind="vllm",
        capacity_tokens=sum(count * size for count, size in zip(blocks, sizes, strict=True)),
        block_tokens=max(sizes),
        max_running=_count(scheduling.get("max_num_seqs")) * len(found),
        first="low" if by_priority else None,
        preempts=by_priority,
        metrics=True,
        events=_configured(_inner(config, "kv_events_config"), host, len(found)),
    )


def _configured(told: dict[str, Any], host: str, ranks: int) -> EventsAt | None:
    """As vLLM has it in its arguments: the first rank's endpoint, as it is bound."""
    if told.get("enable_kv_cache_events") is not True or told.get("publisher") != "zmq":
        return None
    endpoint = str(told.get("endpoint") or "")
    if not endpoint.startswith("tcp://"):
        return None
    replay = str(told.get("replay_endpoint") or "")
    return EventsAt(
        endpoints=ranked(_reachable(endpoint, host), ranks),
        replays=ranked(_reachable(replay, host), ranks) if replay.startswith("tcp://") else (),
        topic=str(told.get("topic") or ""),
    )


def ranked(endpoint: str, ranks: int) -> tuple[str, ...]:
    """The endpoints of so many ranks, whose ports follow one another."""
    before, _, port = endpoint.rpartition(":")
    return tuple(f"{before}:{int(port) + rank}" for rank in range(ranks)) if port.isdigit() else (endpoint,)


def _reachable(endpoint: str, host: str) -> str:
    at, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return f"tcp://{_bracketed(host) if at in WILDCARDS else at}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _inner(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


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
