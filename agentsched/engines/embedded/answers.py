"""Answers of the model, from tokens to text and tool calls, as they stream."""

from __future__ import annotations

import codecs
import json

from tokenizers import Tokenizer

from agentsched.engines.embedded.tokenizer import byte_alphabet
from agentsched.engines.frontend import Delta, ToolCallText


def call_text(name: str, arguments: str) -> str:
    """A tool call as the template writes it; ``arguments`` is JSON text and stays as it is."""
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'


def parse_call(text: str) -> ToolCallText | None:
    """The tool call that ``text`` is, or None if it is malformed.

    Arguments keep the model's own spelling where it wrote the template's form, so that
    ``call_text`` gives ``text`` back.
    """
    try:
        call = json.loads(text)
    except ValueError:
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    name, arguments = call["name"], call.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    head = call_text(name, "")[:-1]
    if list(call) == ["name", "arguments"] and text.startswith(head) and text.endswith("}"):
        return ToolCallText(name=name, arguments=text[len(head) : -1])
    return ToolCallText(name=name, arguments=json.dumps(arguments))


class AnswerDecoder:
    """``OutputDecoder`` of one answer. Special tokens are never text."""

    def __init__(self, tokenizer: Tokenizer, call_token: int, end_token: int) -> None:
        self._tokenizer = tokenizer
        self._call_token, self._end_token = call_token, end_token
        self._alphabet = _ALPHABET
        self._specials = {
            number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._call: str | None = None

    def feed(self, tokens: list[int]) -> Delta:
        text: list[str] = []
        calls: list[ToolCallText] = []
        for token in tokens:
            if token not in self._specials:
                piece = self._utf8.decode(self._bytes(token))
            elif token in (self._call_token, self._end_token):
                self._close(text, calls)
                self._call = "" if token == self._call_token else None
                continue
            else:
                continue
            if self._call is None:
                text.append(piece)
            else:
                self._call += piece
        return Delta(text="".join(text), tool_calls=tuple(calls))

    def finish(self) -> Delta:
        text: list[str] = []
        calls: list[ToolCallText] = []
        self._close(text, calls)
        self._call = None
        return Delta(text="".join(text), tool_calls=tuple(calls))

    def _close(self, text: list[str], calls: list[ToolCallText]) -> None:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        if self._call is None:
            text.append(rest)
            return
        call = parse_call(self._call + rest)
        if call is None:
            text.append(self._call + rest)
        else:
            calls.append(call)

    def _bytes(self, token: int) -> bytes:
        # An id past the tokenizer's vocabulary (a head may be padded) has no text.
        return bytes(self._alphabet[char] for char in self._tokenizer.id_to_token(token) or "")


_ALPHABET = byte_alphabet()
