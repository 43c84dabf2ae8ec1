"""Grammars that outputs must follow: which tokens may come next, by llguidance.

A call's state in its grammar is a cache: it is made anew from the call's output where it is missing, so
nothing has to be kept for a call that is preempted and nothing cleared up after one that ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from agentsched.engines.embedded.tokens import ModelTokenizer
from agentsched.engines.execution import Row

# Far more than run at once.
_KEPT = 1024

# An engine's step waits while a grammar is made ready: one second for some 40,000 characters of schemas.
_LONGEST = 60_000

Mask = NDArray[np.bool_]


@lru_cache(maxsize=256)
def grammar_fault(grammar: str) -> str:
    """What is wrong with a grammar; "" if nothing is."""
    if len(grammar) > _LONGEST:
        return f"it has {len(grammar):,} characters of at most {_LONGEST:,}"
    wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return messages[0].partition("\n")[0].removeprefix("at 1(8): ") if wrong else ""


class Grammars:
    """The grammars of running calls over one tokenizer."""

    def __init__(self, tokenizer: ModelTokenizer, vocabulary: int) -> None:
        """``vocabulary`` is the model's. Raises ``ValueError`` if the tokenizer cannot be used."""
        self._words = -(-vocabulary // 32)
        self._vocabulary = vocabulary
        self._states: OrderedDict[str, tuple[str, int, LLMatcher]] = OrderedDict()
        self._tokenizer = LLTokenizer(
            tokenizer.definition, n_vocab=vocabulary, eos_token=list(tokenizer.ends) or None
        )

    def allowed(self, row: Row) -> Mask | str:
        """Which tokens may come after the row, or why none can."""
        assert row.sampling is not None
        matcher = self._state(row, row.sampling.grammar)
        if matcher.is_error():
            return matcher.get_error().partition("\n")[0]
        bits = np.zeros((1, self._words), dtype=np.int32)
        llguidance.numpy.fill_next_token_bitmask(matcher, bits)
        if matcher.is_error():
            return matcher.get_error().partition("\n")[0]
        mask: Mask = np.unpackbits(bits.view(np.uint8), bitorder="little")[: self._vocabulary].view(np.bool_)
        return mask

    def _state(self, row: Row, grammar: str) -> LLMatcher:
        known = self._states.pop(row.call, None)
        if known is not None and known[0] == grammar and known[1] <= row.step:
            done, matcher = known[1], known[2]
        else:
            done, matcher = 0, LLMatcher(self._tokenizer, grammar, log_level=0)
        if done < row.step:
            matcher.consume_tokens(_output(row.context, row.step)[done:])
        self._states[row.call] = (grammar, row.step, matcher)
        if len(self._states) > _KEPT:
            self._states.popitem(last=False)
        return matcher


def _output(context: Sequence[int], step: int) -> list[int]:
    return list(context[len(context) - step :])
