"""What sampling may be asked for: the ranges of its parameters, by the names that the API has."""

from __future__ import annotations

import math

from agentsched.engines.contract import Capabilities, RequestRefused, Sampling

MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 100.0


def check_sampling(sampling: Sampling) -> None:
    """Raises ``RequestRefused`` naming the field that is out of its range."""
    wrong = next((field for field, right in _ranges(sampling).items() if not right), None)
    if wrong:
        name, _, expected = wrong.partition(": ")
        raise RequestRefused(
            f"{name}: must be {expected}, got {getattr(sampling, _FIELDS.get(name, name))!r}"
        )


_FIELDS = {"max_tokens": "max_output_tokens", "top_logprobs": "logprobs"}


def _ranges(sampling: Sampling) -> dict[str, bool]:
    # Every comparison is false of what is no number.
    return {
        "max_tokens: >= 1": sampling.max_output_tokens >= 1,
        "temperature: >= 0": 0 <= sampling.temperature < math.inf,
        "top_p: in (0, 1]": 0 < sampling.top_p <= 1,
        "top_k: >= 0 (0 keeps all tokens)": sampling.top_k >= 0,
        "min_p: in [0, 1]": 0 <= sampling.min_p <= 1,
        "repetition_penalty: in (0, 10]": 0 < sampling.repetition_penalty <= 10,
        "presence_penalty: in [-2, 2]": -2 <= sampling.presence_penalty <= 2,
        "frequency_penalty: in [-2, 2]": -2 <= sampling.frequency_penalty <= 2,
        "logit_bias: tokens with values in [-100, 100]": all(
            -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS for bias in sampling.logit_bias.values()
        ),
        f"top_logprobs: in [0, {MAX_TOP_LOGPROBS}]": sampling.logprobs is None
        or 0 <= sampling.logprobs <= MAX_TOP_LOGPROBS,
    }


def check_capable(sampling: Sampling, engine: Capabilities, *, recorded: bool) -> None:
    """Raises ``RequestRefused`` for what this engine does not do, or nobody with a ``recorded`` output."""
    if recorded and (sampling.grammar or sampling.logprobs is not None):
        raise RequestRefused("recorded: such an output follows no grammar and has no log probabilities")
    if not all(0 <= token < engine.vocabulary for token in sampling.logit_bias):
        raise RequestRefused(f"logit_bias: has a token outside the vocabulary [0, {engine.vocabulary})")
    if sampling.logprobs is not None and not engine.logprobs:
        raise RequestRefused(f"logprobs: a {engine.kind} engine does not tell them")
    if sampling.grammar and not engine.grammars:
        raise RequestRefused(f"grammar: a {engine.kind} engine cannot follow one")
