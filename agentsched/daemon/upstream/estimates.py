"""How many tokens a request will be, before the server that counts them has said so.

The daemon has no tokenizer of such a server. So tokens are guessed from the bytes of a request, by how many
tokens a byte was in the calls that have ended: of the same program if there are any, else of all. What a
call was is known at its end by the server's ``usage``; that counts from then on. Without any usage the
first guess stays.
"""

from __future__ import annotations

from agentsched.daemon.recent import Recent

FIRST_GUESS = 0.25
"""Tokens a byte, of English and code."""

LEARN = 0.1
"""Weight of a new call among all."""

REMEMBERED = 50_000

REWRITTEN_TOKENS = 64
"""So much of a prompt's end may be written anew in the next one, as what calls for the answer."""


class Estimates:
    """Learns from calls that ended. Memory is bounded."""

    def __init__(self) -> None:
        self._of_all = FIRST_GUESS
        self._of_program: Recent[str, float] = Recent(REMEMBERED)
        self._cached: Recent[str, int] = Recent(REMEMBERED)
        self._context: Recent[str, int] = Recent(REMEMBERED)
        self._prompt: Recent[str, tuple[str, int]] = Recent(REMEMBERED)
        """Of its last call: the server, and the prompt's tokens."""

    def prompt_tokens(self, program: str, body_bytes: int) -> int:
        """Tokens of a request's prompt."""
        ratio = self._of_program.get(program) or self._of_all
        return max(1, round(ratio * body_bytes))

    def knows(self, program: str) -> bool:
        """Whether a call of it has ended, so that the kind of its calls says nothing more."""
        return program in self._context

    def cached_tokens(self, program: str, kind: str, prompt_tokens: int) -> int:
        """How much of the prompt is cached: the program's context so far; of a first call, as much as of
        the last first call of its ``kind``."""
        known = self._context.get(program)
        if known is None:
            known = self._cached.get(kind) or 0
        return min(known, prompt_tokens)

    def learn(
        self, program: str, kind: str, body_bytes: int, *, prompt: int, cached: int | None, output: int
    ) -> None:
        """A call ended; tokens as the server counted them."""
        if prompt and body_bytes:
            ratio = prompt / body_bytes
            self._of_program[program] = ratio
            self._of_all += LEARN * (ratio - self._of_all)
        if cached is not None and program not in self._context:
            self._cached[kind] = cached
        self._context[program] = prompt + output

    def recomputed_tokens(self, program: str, server: str, *, prompt: int, cached: int | None) -> int:
        """Of a prompt that was computed, what the server had held once: the program's last prompt, which this
        one goes on from, so far as it was not cached. To be asked once a call, at its end; 0 where the server
        does not tell what was cached, and of what templates write anew."""
        last_server, last = self._prompt.get(program) or ("", 0)
        self._prompt[program] = (server, prompt)
        if cached is None or server != last_server or prompt < last:
            return 0
        return max(0, last - REWRITTEN_TOKENS - cached)

    def text_tokens(self, text: str) -> int:
        """Tokens of an answer that nobody counted."""
        return round(self._of_all * len(text))
