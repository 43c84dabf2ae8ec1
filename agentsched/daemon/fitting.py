"""A request cut to the room that an engine has for its context."""

from __future__ import annotations

import msgspec

from agentsched.daemon.errors import refused
from agentsched.engines.contract import RequestRefused
from agentsched.engines.frontend import Prepared


def fitted(prepared: Prepared, room_tokens: int) -> Prepared:
    """With no more output than there is room for; ``room_tokens`` 0: nobody knows. The engine's KV may be
    smaller than the model's context. Raises ``ApiError`` where there is room for none."""
    left = room_tokens - len(prepared.prompt)
    if not room_tokens or prepared.sampling.max_output_tokens <= left:
        return prepared
    if left < 1:
        raise refused(
            RequestRefused(
                f"messages: the prompt has {len(prepared.prompt):,} tokens, and a context here has room "
                f"for {room_tokens:,}, output included"
            )
        )
    sampling = msgspec.structs.replace(prepared.sampling, max_output_tokens=left)
    return msgspec.structs.replace(prepared, sampling=sampling)
