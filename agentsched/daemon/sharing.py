"""Which tokens of a prompt are no secret, so that all tenants may share their KV.

An operator declares beginnings of prompts (``SharedPrefix``). Each is rendered by the model's own
template, up to where a user's first word would stand. A prompt is compared with that token by token: what
it begins with alike is public, whoever wrote it, and nothing of a tenant's own ever is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from agentsched.daemon.accounts import SharedPrefix
from agentsched.daemon.care import shared_tokens
from agentsched.engines.contract import RequestRefused
from agentsched.engines.frontend import ChatRequest, Frontend

_log = logging.getLogger(__name__)


class SharedPrefixes:
    """Those that are declared. Pure computation; one thread uses it."""

    def __init__(self, prefixes: Sequence[SharedPrefix], frontend: Frontend) -> None:
        self._prefixes = prefixes
        self._frontend = frontend
        self._known: dict[str, list[list[int]]] = {}

    def declare(self, prefixes: Sequence[SharedPrefix]) -> None:
        """These, from now on."""
        self._prefixes = prefixes
        self._known.clear()

    def tokens(self, model: str, prompt: list[int]) -> int:
        """How many tokens at the prompt's beginning are public."""
        if not self._prefixes:
            return 0
        if model not in self._known:
            self._known[model] = [self._rendered(model, prefix) for prefix in self._prefixes]
        return max(_alike(prompt, public) for public in self._known[model])

    def _rendered(self, model: str, prefix: SharedPrefix) -> list[int]:
        def prompt(word: str) -> list[int]:
            messages = [{"role": "system", "content": prefix.system}, {"role": "user", "content": word}]
            asked = ChatRequest(model=model, messages=messages, tools=prefix.tools, max_output_tokens=1)
            return self._frontend.prepare(asked).prompt

        try:
            one, other = prompt("a"), prompt("b")
        except RequestRefused as error:
            _log.warning("a shared prefix cannot be used with the model %s: %s", model, error)
            return []
        return one[: shared_tokens(one, other)]


def _alike(prompt: list[int], public: list[int]) -> int:
    if prompt[: len(public)] == public:
        return len(public)
    return shared_tokens(prompt, public)
