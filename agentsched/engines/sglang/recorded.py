"""What a request says to have SGLang emit recorded tokens, at full computing cost, and leave their KV behind.

SGLang takes a logit processor of the client's choice with a request, if the server was started with ``FLAG``:
pickled, so that whoever reaches such a server runs what they like in it. Ours is pickled by its name, and is
imported there: agentsched has to be installed in the server's environment, with or without its cache in use.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

FLAG = "--enable-custom-logit-processor"

PROCESSOR = json.dumps({"callable": b"cagentsched.engines.sglang.emitting\nRecordedOutput\n.".hex()})
"""As ``CustomLogitProcessor.to_str`` writes a class: the pickle of a name is that name."""

PARAMETER = "agentsched_recorded"


def parameters(tokens: Sequence[int]) -> dict[str, Any]:
    """``custom_params`` for these tokens: a field of its own in the OpenAI APIs, one of ``sampling_params``
    in ``/generate``. Beside it goes ``custom_logit_processor``: ``PROCESSOR``."""
    return {PARAMETER: list(tokens)}


def fields(tokens: Sequence[int]) -> dict[str, Any]:
    """What a completion or chat completion that is to say these tokens has in its body. Stop strings and
    ``stop_token_ids`` of the client end it sooner, as they end any output."""
    return {
        "custom_logit_processor": PROCESSOR,
        "custom_params": parameters(tokens),
        "max_tokens": len(tokens),
        "ignore_eos": True,
    }
