"""SGLang's unified radix cache with our retention in it.

Its tree's hooks tell ``Retained`` what becomes of nodes, and its eviction asks there what a leaf is worth.
What is worth more than new calls may take counts as protected instead of evictable, so that SGLang's own
admission leaves it alone. Nothing is locked: a running call that needs a page to go on may still evict it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from sglang.srt.mem_cache.evict_policy import EvictionStrategy
from sglang.srt.mem_cache.unified_cache.components import ComponentType, EvictLayer, FullComponent
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from agentsched.engines.sglang.recomputing import LAST_TOKENS
from agentsched.engines.sglang.retained import Priority, Retained

if TYPE_CHECKING:
    from agentsched.engines.sglang.scheduling import Loop

LEAST_TRIM_TOKENS = 64
"""So much is evicted of a leaf at one time at least. Walking the leaves for each page would cost more than
the pages are worth."""


def program_of(request: Any) -> str | None:
    """Whose a request is: the routing key of the HTTP header ``x-smg-routing-key``, else ``session_id`` of
    the body (SGLang reads no such header in the responses API)."""
    name = request.routing_key or request.session_id
    return unquote(name) if name else None


class ByWorth(EvictionStrategy):
    """Which leaf goes first."""

    def __init__(self, cache: RetainingCache) -> None:
        self._cache = cache

    def get_priority(self, node: Any) -> Priority:
        cache = self._cache
        return cache.retained.priority(node.id, float(node.last_access_time), cache.now_s)


class RetainingComponent(FullComponent):
    """The tree's KV; tells what becomes of its nodes, and evicts the tail of a leaf rather than all of it."""

    def __init__(self, cache: RetainingCache, params: Any) -> None:
        self._retained = cache.retained
        super().__init__(cache, params)

    def redistribute_on_node_split(self, new_parent: Any, child: Any) -> None:
        super().redistribute_on_node_split(new_parent, child)
        self._retained.split(new_parent.id, child.id, len(new_parent.key))

    def evict_component(
        self,
        node: Any,
        device_frees: Any,
        host_frees: Any,
        cache_actions: Any,
        target: EvictLayer = EvictLayer.DEVICE,
    ) -> tuple[int, int]:
        tokens, last = len(node.key), node.key.raw_token_ids()[-LAST_TOKENS:]
        freed, host_freed = super().evict_component(node, device_frees, host_frees, cache_actions, target)
        if freed:
            self._retained.gone(node.id, tokens, last)
        return freed, host_freed

    def evict_device_next_node(
        self, tracker: Any, device_frees: Any, host_frees: Any, cache_actions: Any
    ) -> int | None:
        found: int | None = super().evict_device_next_node(tracker, device_frees, host_frees, cache_actions)
        if found is None:
            return None
        wanted = max(LEAST_TRIM_TOKENS, self.cache.wanted_tokens - tracker[self.component_type])
        tail = self._retained.tail_tokens(found, wanted, self.cache.now_s)
        if tail is not None:
            self._split_off(self.tree_core.node_by_id(found), tail)
        return found

    def _split_off(self, node: Any, tail_tokens: int) -> None:
        """The leaf keeps its number and its tail; its head is a node above it, no younger than it was."""
        last_used = node.last_access_time
        head, action = self.tree_core._split_node(node.key, node, len(node.key) - tail_tokens)
        assert action is None, "a node is backed up, which was refused at the start"
        head.last_access_time = node.last_access_time = last_used

    def cleanup_after_caching_req(
        self, req: Any, is_finished: bool, insert_result: Any = None, insert_params: Any = None
    ) -> None:
        super().cleanup_after_caching_req(req, is_finished, insert_result, insert_params)
        program = program_of(req)
        if program is None or insert_result is None or insert_result.rotation_tail_declined:
            return
        self._retained.reach(program, self._path(insert_result.last_device_node))

    def _path(self, number: int) -> list[tuple[int, int]]:
        path = []
        node = self.tree_core.node_by_id(number)
        while node is not self.tree_core.root_node:
            path.append((node.id, len(node.key)))
            node = node.parent
        path.reverse()
        return path

    def reset_session_state(self) -> None:
        super().reset_session_state()
        self._retained.clear()


class RetainingCache(UnifiedRadixCache):
    """See the module. ``loop`` is what the scheduler's loop does for it, set before the loop begins;
    ``now_s`` the monotonic time of its turn, which is one on all ranks (``ranks.py``)."""

    loop: Loop
    now_s = 0.0

    def __init__(self, params: Any) -> None:
        self.retained = Retained(params.page_size)
        self.wanted_tokens = 0
        params.tree_core_backend = "python"  # the one in Rust asks nobody what a node is worth
        params.component_registry_override = {ComponentType.FULL: RetainingComponent}
        super().__init__(params)
        self.tree_core.eviction_strategy = ByWorth(self)

    def evict(self, params: Any) -> Any:
        self.wanted_tokens = params.num_tokens
        return super().evict(params)

    def evict_for_alloc(self, params: Any, **options: Any) -> Any:
        self.wanted_tokens = params.num_tokens
        return super().evict_for_alloc(params, **options)

    def held_back_tokens(self) -> int:
        """Of what could be evicted, what new calls may not take."""
        core = self.tree_core
        return sum(
            tokens
            for number, tokens in self.retained.held_back(self.now_s)
            if core.node_by_id(number).component_data[ComponentType.FULL].lock_ref == 0
        )

    def evictable_size(self) -> int:
        return int(super().evictable_size()) - self.held_back_tokens()

    def protected_size(self) -> int:
        return int(super().protected_size()) + self.held_back_tokens()

    def full_evictable_size(self) -> int:
        return int(super().full_evictable_size()) - self.held_back_tokens()

    def full_protected_size(self) -> int:
        return int(super().full_protected_size()) + self.held_back_tokens()

    def sanity_check(self) -> None:
        super().sanity_check()
        self.retained.check_invariants(self._places())

    def _places(self) -> Iterator[tuple[int, int, int]]:
        below = [(child, 0) for child in self.tree_core.root_node.children.values()]
        while below:
            node, start = below.pop()
            yield node.id, start, len(node.key)
            below += [(child, start + len(node.key)) for child in node.children.values()]
