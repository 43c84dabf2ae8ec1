"""Which of SGLang's members the plugin relies on, and whether this SGLang has them.

SGLang's plugin points are few, so the cache is a subclass of its unified radix cache. ``MEMBERS`` are the
functions that are called or overridden, ``ATTRIBUTES`` what is read or set of its objects; ``PRIVATE`` are
those that it calls its own. A version that was not tried is refused, since a member may keep its name and
change its meaning: the environment's AGENTSCHED_SGLANG_UNTRIED=1 lets it pass, if the members are there.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
from collections.abc import Mapping

TRIED = ("0.5.23",)
UNTRIED_VARIABLE = "AGENTSCHED_SGLANG_UNTRIED"

_CACHE = "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache"
_TREE = "sglang.srt.mem_cache.unified_cache.unified_tree_core:UnifiedTreeCore"
_FULL = "sglang.srt.mem_cache.unified_cache.components:FullComponent"
_RECEIVER = "sglang.srt.managers.scheduler_components.request_receiver:SchedulerRequestReceiver"
_PROCESSOR = "sglang.srt.sampling.custom_logit_processor:CustomLogitProcessor"

MEMBERS: Mapping[str, tuple[str, ...]] = {
    "sglang.srt.mem_cache.registry:register_radix_cache_backend": ("name", "factory"),
    "sglang.srt.mem_cache.registry:create_unified_radix_cache": ("ctx", "cache_class"),
    "sglang.srt.mem_cache.evict_policy:EvictionStrategy.get_priority": ("self", "node"),
    "sglang.srt.mem_cache.radix_cache:RadixKey.raw_token_ids": ("self",),
    f"{_PROCESSOR}.__call__": ("logits", "custom_param_list"),
    "sglang.srt.plugins.hook_registry:HookRegistry.register": ("target", "hook"),
    "sglang.srt.plugins.hook_registry:HookRegistry.apply_hooks": (),
    f"{_RECEIVER}.recv_requests": ("self", "local_reqs"),
    "sglang.srt.managers.scheduler:Scheduler.process_input_requests": ("self", "recv_reqs"),
    "sglang.srt.managers.scheduler:Scheduler.process_batch_result": ("self", "batch"),
    "sglang.srt.managers.scheduler:Scheduler.get_num_allocatable_reqs": ("self", "running_bs"),
    "sglang.srt.managers.schedule_policy:SchedulePolicy.calc_priority": ("self", "waiting_queue"),
    f"{_CACHE}.__init__": ("self", "params"),
    f"{_CACHE}.evict": ("self", "params"),
    f"{_CACHE}.evict_for_alloc": ("self", "params"),
    f"{_CACHE}.evictable_size": ("self",),
    f"{_CACHE}.protected_size": ("self",),
    f"{_CACHE}.full_evictable_size": ("self",),
    f"{_CACHE}.full_protected_size": ("self",),
    f"{_TREE}.node_by_id": ("self", "node_id"),
    f"{_TREE}._split_node": ("self", "key", "child", "split_len"),
    f"{_FULL}.redistribute_on_node_split": ("self", "new_parent", "child"),
    f"{_FULL}.evict_component": ("self", "node", "device_frees", "host_frees", "cache_actions", "target"),
    f"{_FULL}.evict_device_next_node": ("self", "tracker", "device_frees", "host_frees", "cache_actions"),
    f"{_FULL}.cleanup_after_caching_req": ("self", "req", "is_finished", "insert_result"),
    f"{_FULL}.reset_session_state": ("self",),
}
"""A member, and the parameters that it has to have."""

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    f"{_TREE}.__init__": ("eviction_strategy",),
    f"{_TREE}.reset": ("root_node",),
    "sglang.srt.managers.schedule_policy:SchedulePolicy.__init__": ("tree_cache",),
    "sglang.srt.managers.schedule_batch:Req.__init__": (
        "routing_key",
        "session_id",
        "origin_input_ids",
        "kv",
    ),
    "sglang.srt.managers.schedule_batch:ScheduleBatch": (
        "reqs",
        "forward_mode",
        "extend_num_tokens",
        "prefix_lens",
        "extend_lens",
    ),
    "sglang.srt.managers.scheduler:Scheduler": (
        "tree_cache",
        "waiting_queue",
        "running_batch",
        "last_batch",
        "chunked_req",
        "_engine_paused",
    ),
}
"""A function or class, and the attributes that its code has to name."""

PRIVATE = (f"{_TREE}._split_node", "sglang.srt.managers.scheduler:Scheduler._engine_paused")


class Unsupported(Exception):
    """This SGLang, or the way it was started, is not one that the plugin can work in."""


def check(version: str) -> None:
    """Raises ``Unsupported`` for an SGLang whose members are not those that are known, or that nobody
    tried."""
    lacking = [problem for name, wanted in MEMBERS.items() if (problem := _function(name, wanted))]
    lacking += [problem for name, wanted in ATTRIBUTES.items() if (problem := _attributes(name, wanted))]
    if lacking:
        raise Unsupported(
            f"agentsched's plugin does not work in SGLang {version} (it was tried with {', '.join(TRIED)}): "
            + "; ".join(lacking)
        )
    if version not in TRIED and os.environ.get(UNTRIED_VARIABLE) != "1":
        raise Unsupported(
            f"agentsched's plugin was tried with SGLang {', '.join(TRIED)} only, and this is {version}; all "
            f"that it uses is there, so it may work: {UNTRIED_VARIABLE}=1 in the environment tries it"
        )


def _function(name: str, wanted: tuple[str, ...]) -> str | None:
    """What is wrong with a function."""
    try:
        has = inspect.signature(pkgutil.resolve_name(name)).parameters
    except (ImportError, AttributeError):
        return f"{name} is not there"
    missing = [parameter for parameter in wanted if parameter not in has]
    return f"{name} has no parameter {', '.join(missing)}" if missing else None


def _attributes(name: str, wanted: tuple[str, ...]) -> str | None:
    """What is wrong with the attributes that are set there."""
    try:
        source = inspect.getsource(pkgutil.resolve_name(name))
    except (ImportError, AttributeError):
        return f"{name} is not there"
    missing = [attribute for attribute in wanted if not re.search(rf"\bself\.{attribute}\b", source)]
    return f"{name} knows no self.{', self.'.join(missing)}" if missing else None
