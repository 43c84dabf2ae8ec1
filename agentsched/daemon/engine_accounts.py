"""What engines tell of calls, put right where it cannot be."""

from __future__ import annotations

import logging

import msgspec

from agentsched.core import events as ev
from agentsched.daemon.livecall import LiveCall

_log = logging.getLogger(__name__)


def honest(call: LiveCall, told: ev.CallFinished, engine: str) -> ev.CallFinished:
    """What the engine says of the call, in numbers that can be: clients pay by them, and policies learn."""
    prompt_tokens = len(call.prepared.prompt)
    right = msgspec.structs.replace(
        told,
        prompt_tokens=prompt_tokens,
        cached_tokens=min(told.cached_tokens, prompt_tokens),
        output_tokens=call.output_tokens,
    )
    if right != told:
        _log.warning(
            "engine %s tells of call %s what cannot be: %d of %d prompt tokens cached, %d out; "
            "it has %d, and %d came out",
            engine,
            call.name,
            told.cached_tokens,
            told.prompt_tokens,
            told.output_tokens,
            prompt_tokens,
            call.output_tokens,
        )
    return right
