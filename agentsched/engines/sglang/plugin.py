"""What SGLang's entry point loads in each of its processes: one more radix cache backend by name.

Nothing else happens until a server is started with ``--radix-cache-backend agentsched``: the rest is
imported, and the scheduler's loop hooked, when SGLang asks for that cache.
"""

from __future__ import annotations

from typing import Any

NAME = "agentsched"


def register() -> None:
    """The entry point."""
    from sglang.srt.mem_cache.registry import register_radix_cache_backend

    register_radix_cache_backend(NAME, make_cache)


def make_cache(context: Any) -> Any:
    """SGLang's factory of a radix cache (``TreeCacheBuildContext``). Raises ``Unsupported`` where it could
    not do what it promises, and ``OSError`` and ``UnsafePlace`` if its socket cannot be made."""
    from sglang.srt.mem_cache.registry import create_unified_radix_cache
    from sglang.version import __version__

    from agentsched.engines.sglang import compatibility

    compatibility.check(__version__)
    check_start(context)

    from agentsched.engines.sglang.cache import RetainingCache
    from agentsched.engines.sglang.scheduling import begin

    cache = create_unified_radix_cache(context, cache_class=RetainingCache)
    begin(cache, port=context.server_args.port, rank=context.tp_rank, ranks=context.tp_size)
    return cache


def check_start(context: Any) -> None:
    """Raises ``Unsupported`` for servers started in ways in which the plugin would not keep its word."""
    from agentsched.engines.sglang.compatibility import Unsupported

    arguments, params = context.server_args, context.params
    refused = {
        "--attn-cp-size above 1": arguments.attn_cp_size > 1,
        "--pp-size above 1": params.pp_size > 1,
        "--dp-size above 1 (start one server each, and name them all to the daemon)": arguments.dp_size > 1,
        "--disable-radix-cache": context.disable_radix_cache,
        "--enable-hierarchical-cache": context.enable_hierarchical_cache,
        "--enable-session-radix-cache (its order of eviction would stand above ours)": (
            params.enable_session_radix_cache
        ),
        "a --radix-eviction-policy other than lru": params.eviction_policy.lower() != "lru",
        "a model with sliding windows or states besides KV": context.is_hybrid_swa or context.is_hybrid_ssm,
        "speculative decoding": bool(arguments.speculative_algorithm),
        "prefill and decode on different servers": arguments.disaggregation_mode != "null",
    }
    if problems := [what for what, found in refused.items() if found]:
        raise Unsupported(f"--radix-cache-backend {NAME} does not work with {'; nor with '.join(problems)}")
