"""What the plugin says of the ways in which an SGLang may be started; without an SGLang."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentsched.engines.sglang.compatibility import Unsupported
from agentsched.engines.sglang.plugin import check_start


def context(**changed: Any) -> SimpleNamespace:
    """What SGLang hands to the factory of a radix cache, as far as it is looked at. ``changed``: by path."""
    started = SimpleNamespace(
        server_args=SimpleNamespace(
            dp_size=1, attn_cp_size=1, speculative_algorithm=None, disaggregation_mode="null"
        ),
        params=SimpleNamespace(pp_size=1, enable_session_radix_cache=False, eviction_policy="LRU"),
        tp_size=1,
        disable_radix_cache=False,
        enable_hierarchical_cache=False,
        is_hybrid_swa=False,
        is_hybrid_ssm=False,
    )
    for path, value in changed.items():
        *above, name = path.split("__")
        owner = started
        for part in above:
            owner = getattr(owner, part)
        setattr(owner, name, value)
    return started


def test_one_rank_and_several_are_taken() -> None:
    check_start(context())
    check_start(context(tp_size=8))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"enable_hierarchical_cache": True}, "--enable-hierarchical-cache"),
        ({"params__enable_session_radix_cache": True}, "--enable-session-radix-cache"),
        ({"params__eviction_policy": "lfu"}, "--radix-eviction-policy other than lru"),
        ({"params__pp_size": 2}, "--pp-size above 1"),
        ({"server_args__attn_cp_size": 2}, "--attn-cp-size above 1"),
        ({"server_args__dp_size": 2}, "--dp-size above 1"),
        ({"server_args__speculative_algorithm": "EAGLE"}, "speculative decoding"),
        ({"server_args__disaggregation_mode": "prefill"}, "prefill and decode on different servers"),
        ({"is_hybrid_swa": True}, "sliding windows"),
        ({"disable_radix_cache": True}, "--disable-radix-cache"),
    ],
)
def test_what_it_would_not_keep_its_word_with_is_refused_by_the_name_of_its_flag(
    changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(Unsupported, match=said):
        check_start(context(**changed))


def test_all_that_is_refused_is_named_at_once() -> None:
    with pytest.raises(Unsupported, match=r"--pp-size above 1.*; nor with --enable-hierarchical-cache"):
        check_start(context(params__pp_size=2, enable_hierarchical_cache=True))
