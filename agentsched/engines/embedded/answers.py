"""Answers of the model, from tokens to text and tool calls, as they stream."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from agentsched.engines.contract import Logprobs
from agentsched.engines.embedded.tokens import ModelTokenizer
from agentsched.engines.embedded.tool_formats import ToolFormat
from agentsched.engines.frontend import Delta, TokenLogprob, ToolCallText


@dataclass
class _Found:
    """What some tokens added."""

    text: list[str] = field(default_factory=list)
    calls: list[ToolCallText] = field(default_factory=list)


class CallReader:
    """Tells tool calls from text. What may yet be the beginning of a mark is kept back.

    A malformed call is text. Blank space after a call is part of nothing.
    """

    def __init__(self, form: ToolFormat, specials: Collection[str]) -> None:
        self._form = form
        # Where the mark is a special token, text that looks like it is text.
        self._opening = "" if form.opening in specials else form.opening
        self._kept = ""
        self._body: str | None = None
        self._mark = ""  # what stood before the body, as far as it is text
        self._begun = self._after_call = False

    def text(self, text: str, found: _Found) -> None:
        while text:
            text = self._read_call(text, found) if self._body is not None else self._read_text(text, found)

    def _read_call(self, text: str, found: _Found) -> str:
        """Take text inside a call; what is left after its closing mark."""
        assert self._body is not None
        closing = self._form.closing
        searched = len(self._body) - len(closing) + 1
        self._body += text
        at = self._body.find(closing, max(0, searched)) if closing else -1
        if at < 0:
            return ""
        body, rest = self._body[:at], self._body[at + len(closing) :]
        self._body = body
        self._close(found, closing)
        return rest

    def _read_text(self, text: str, found: _Found) -> str:
        form, opening = self._form, self._opening
        text, self._kept = self._kept + text, ""
        if form.bare and not self._begun:
            if not (stripped := text.lstrip()):
                self._kept = text
                return ""
            self._begun = True
            if stripped.startswith("{"):
                self._body, self._mark = "", ""
                return text
        at = text.find(opening) if opening else -1
        if at >= 0:
            self._say(text[:at], found, mark=True)
            self._body, self._mark = "", opening
            return text[at + len(opening) :]
        keep = _overlap(text, "\n" * form.newline + opening) or _overlap(text, opening)
        if form.newline and not keep and text.endswith("\n"):
            keep = 1  # the mark to come may be a special token
        self._kept = text[len(text) - keep :]
        self._say(text[: len(text) - keep], found)
        return ""

    def _say(self, text: str, found: _Found, *, mark: bool = False) -> None:
        if self._after_call and not text.strip():
            return
        self._after_call = False
        found.text.append(text.removesuffix("\n") if mark and self._form.newline else text)

    def mark(self, name: str, found: _Found) -> None:
        """A special token came."""
        form = self._form
        if name == form.opening:
            self._end(found, mark=True)
            self._body, self._mark, self._begun = "", "", True
        elif name == form.closing and self._body is not None:
            self._close(found, "")
        elif name in form.inner and self._body is not None:
            self._body += name

    def finish(self, found: _Found) -> None:
        """The answer is at its end."""
        self._end(found)

    def _end(self, found: _Found, *, mark: bool = False) -> None:
        if self._body is not None:
            self._close(found, "")
        kept, self._kept = self._kept, ""
        if kept:
            self._say(kept, found, mark=mark)

    def _close(self, found: _Found, closing: str) -> None:
        assert self._body is not None
        body, self._body = self._body, None
        calls = self._form.parse(body)
        if calls is not None:
            found.calls += calls
            self._after_call = True
        else:
            found.text.append(f"{self._mark}{body}{closing}")


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``mark``."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)


class AnswerDecoder:
    """``OutputDecoder`` of one answer. Special tokens are never text.

    Without a ``form`` all is text. ``single``: the answer ends after its first call. When it is
    finished, its tokens are remembered for the prompt that it will come back in.
    """

    def __init__(
        self, tokenizer: ModelTokenizer, prompt: Sequence[int], form: ToolFormat | None, *, single: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._reader = CallReader(form, tokenizer.specials) if form else None
        self._single = single
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_first_space
        self._tokens: list[int] = []
        self._ended = False

    def feed(self, tokens: list[int], logprobs: Sequence[Logprobs] | None = None) -> Delta:
        found = _Found()
        self._tokens += tokens
        for token in tokens:
            if not self._tokenizer.is_special(token):
                self._text(self._utf8.decode(self._tokenizer.bytes_of(token)), found)
                continue
            self._text(self._rest(), found)
            if self._reader:
                self._reader.mark(self._tokenizer.name(token), found)
        scored = zip(tokens, logprobs or (), strict=False)
        return self._delta(found, tuple(self._logprob(token, score) for token, score in scored))

    def finish(self) -> Delta:
        found = _Found()
        self._text(self._rest(), found)
        if self._reader:
            self._reader.finish(found)
        self._tokenizer.remember(self._prompt, self._tokens)
        return self._delta(found, ())

    def _rest(self) -> str:
        """What is left of an incomplete character."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest

    def _text(self, text: str, found: _Found) -> None:
        if text and self._strip:
            text, self._strip = text.removeprefix(" "), False
        if self._reader:
            self._reader.text(text, found)
        else:
            found.text.append(text)

    def _delta(self, found: _Found, logprobs: tuple[TokenLogprob, ...]) -> Delta:
        if self._ended:
            return Delta()
        self._ended = self._single and bool(found.calls)
        if self._ended:
            self._tokenizer.remember(self._prompt, self._tokens)
        calls = tuple(found.calls[:1] if self._single else found.calls)
        return Delta(text="".join(found.text), tool_calls=calls, logprobs=logprobs, ended=self._ended)

    def _logprob(self, token: int, score: Logprobs) -> TokenLogprob:
        spelled = self._tokenizer.bytes_of
        return TokenLogprob(
            token=spelled(token),
            logprob=score.token,
            top=tuple((spelled(other), logprob) for other, logprob in score.top),
        )
