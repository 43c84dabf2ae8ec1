"""The logit processor that leaves one token to choose: the recorded one. SGLang makes it by its name
(``recorded.py``)."""

from __future__ import annotations

from typing import Any

from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

from agentsched.engines.sglang.recorded import PARAMETER


class RecordedOutput(CustomLogitProcessor):
    """One for all rows of a batch whose requests name it."""

    def __call__(self, logits: Any, custom_param_list: list[dict[str, Any] | None] | None = None) -> Any:
        for row, asked in enumerate(custom_param_list or ()):
            token = _next(asked) if asked and PARAMETER in asked else None
            # What is no token would end the server: it is sampled instead, and whoever asked sees that.
            if token is not None and 0 <= token < logits.shape[-1]:
                logits[row] = float("-inf")
                logits[row, token] = 0.0
        return logits


def _next(asked: dict[str, Any]) -> int | None:
    """The token that this step is to choose; None if there is none: after a part of a prompt, and after the
    last token, in the step that SGLang computes before it knows.

    Counted by the KV that the request has in this step, not by its output: with overlap of batches the token
    before may not have come back yet.
    """
    request, recorded = asked["__req__"], asked[PARAMETER]
    place = request.kv.kv_committed_len - len(request.origin_input_ids)
    return int(recorded[place]) if 0 <= place < len(recorded) else None
