"""Whether there is memory for what an engine is asked to hold, asked before it is taken.

Linux hands out more memory than there is and kills whoever writes to too much of it, so an engine that just
allocated would end without a word.
"""

from __future__ import annotations

from pathlib import Path

import torch

from agentsched.engines.embedded.spec import ModelSpec

_MEMINFO = Path("/proc/meminfo")


def token_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """What the KV of one token takes."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize


def check_memory(need_bytes: int, what: str, remedy: str) -> None:
    """Raises ``ValueError`` if this machine has not so much memory left; passes where it does not say."""
    available = _available_bytes()
    if available is not None and need_bytes > available:
        raise ValueError(
            f"{what} takes {need_bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB are available: {remedy}"
        )


def _available_bytes() -> int | None:
    try:
        lines = _MEMINFO.read_text("ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
