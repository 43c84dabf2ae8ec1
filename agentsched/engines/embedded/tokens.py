"""A model folder's tokenizer: prompts into tokens, tokens back into the bytes that they stand for.

Prompts are encoded a piece at a time, cut at special tokens, which gives the same tokens as encoding
them whole and lets a growing conversation encode only what is new. Inside a piece a special token's
name is text, so nobody forges a message by writing it.

A model does not always emit the tokens that its text would be encoded to, so text alone cannot lead back
to the KV that an answer left behind. Pieces of answers are therefore remembered as they were emitted,
under all tokens before them: where a prompt comes to the same text after the same tokens, it gets the
tokens that are in KV already.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from agentsched.engines.embedded.preset import CONFIG, TOKENIZER, TOKENIZER_CONFIG
from agentsched.engines.embedded.tokenizer import byte_alphabet

_ALPHABET = byte_alphabet()
# Stands inside a name that is only text. A character that Unicode keeps out of all texts.
_MARK = "\ufdd0"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Some 30 messages each of 100 programs, 4 bytes a token.
_REMEMBERED = 4096


class ModelTokenizer:
    """``specials`` are the special tokens by name, ``added`` all that stand for one text as a whole, those
    among them. ``ends`` are the tokens that end an answer, and ``end`` is the one of them that closes a
    turn in prompts, if the folder says so."""

    def __init__(self, folder: Path) -> None:
        """Raises ``OSError`` or ``ValueError`` naming the file that cannot be read."""
        path = folder / TOKENIZER
        self.definition = path.read_text("utf-8")
        try:
            self._tokenizer = Tokenizer.from_str(self.definition)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a readable tokenizer ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # A space is put before the first word of a text, not of every piece of it.
        whole = self._tokenizer.to_str()
        self._inner = Tokenizer.from_str(
            whole.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        )
        self._tokenizer.encode_special_tokens = self._inner.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {number: token.content for number, token in added.items()}
        self.added = {token.content: number for number, token in added.items()}
        self.specials = {token.content: number for number, token in added.items() if token.special}
        self._special_ids = frozenset(self.specials.values())
        self._pattern = _alternatives([token for token in added.values() if token.special])
        parts = _decoder_parts(json.loads(whole)["decoder"])
        self._bytes_of = _bytes_of(path, {part["type"] for part in parts})
        # Such a tokenizer spells a text's first word with a space that is none of the text's.
        self.strips_first_space = any(part["type"] == "Strip" and part["start"] for part in parts)
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))
        self._encode = lru_cache(maxsize=_REMEMBERED)(self._encode_now)
        self._emitted: dict[tuple[bytes, str], array[int]] = {}
        self.settings = read_json(folder / TOKENIZER_CONFIG, optional=True)
        self.end = self._named(self.setting("eos_token"))
        self.ends = self._ends(folder)

    def setting(self, name: str) -> str | None:
        """A token's name by its part in ``tokenizer_config.json``."""
        value = self.settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None

    def _named(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)

    def _ends(self, folder: Path) -> tuple[int, ...]:
        generation = read_json(folder / "generation_config.json", optional=True)
        ends = generation.get("eos_token_id", read_json(folder / CONFIG).get("eos_token_id"))
        listed = ends if isinstance(ends, list) else [ends]
        return tuple(sorted({end for end in (*listed, self.end) if isinstance(end, int)}))

    # Into tokens

    def is_special(self, token: int) -> bool:
        return token in self._special_ids

    def as_text(self, text: str) -> str:
        """The text with all names of special tokens in it marked as no more than text."""
        return self._pattern.sub(_marked, text) if self._pattern else text

    def fits(self, text: str, limit_tokens: int) -> bool:
        """False if the text surely has more tokens. Known without encoding, which takes a second a
        megabyte while all others wait."""
        return len(text) <= limit_tokens * self._longest_token

    def encode_prompt(self, text: str, *, inner: bool = False) -> Iterator[int]:
        """Tokens of a rendered prompt, as far as they are asked for. Names of special tokens are those
        tokens unless ``as_text`` marked them. ``inner``: something stands before the text."""
        before = hashlib.blake2b(digest_size=16)
        at = 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            yield from self._piece(text[at : found.start()], before, inner=inner or at > 0)
            special = self.specials[found.group().strip()]
            before.update(array("I", [special]).tobytes())
            yield special
            at = found.end()
        yield from self._piece(text[at:], before, inner=inner or at > 0)

    def _piece(self, text: str, before: hashlib.blake2b, *, inner: bool) -> array[int]:
        text = text.replace(_MARK, "")
        if not text:
            return array("I")
        # JSON can carry half a surrogate pair, which no UTF-8 can: such a character is replaced.
        text = text.encode("utf-8", "replace").decode("utf-8")
        tokens = self._emitted.get((before.digest(), text)) or self._encode(text, inner)
        before.update(tokens.tobytes())
        return tokens

    def _encode_now(self, text: str, inner: bool) -> array[int]:
        tokenizer = self._inner if inner else self._tokenizer
        return array("I", tokenizer.encode(text, add_special_tokens=False).ids)

    def remember(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Have prompts that go on from this answer begin with the very tokens of it."""
        start = next((at + 1 for at in reversed(range(len(prompt))) if self.is_special(prompt[at])), 0)
        before = hashlib.blake2b(array("I", prompt[:start]).tobytes(), digest_size=16)
        piece = array("I", prompt[start:])
        for token in output:
            if self.is_special(token):
                self._keep(before, piece)
                before.update(array("I", [*piece, token]).tobytes())
                piece = array("I")
            else:
                piece.append(token)
        self._keep(before, piece)

    def _keep(self, before: hashlib.blake2b, piece: array[int]) -> None:
        if not piece:
            return
        while len(self._emitted) >= _REMEMBERED:
            del self._emitted[next(iter(self._emitted))]
        self._emitted[before.digest(), self.text(piece)] = piece

    # Out of tokens

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens that are not special."""
        return b"".join(map(self.bytes_of, tokens)).decode("utf-8", "replace")

    def name(self, token: int) -> str:
        """A special token's name."""
        return self._added[token]

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for, of which one character may need several tokens.

        An id past the tokenizer's vocabulary (a head may be padded) has none.
        """
        if token in self._added:
            return self._added[token].encode()
        return self._bytes_of(self._tokenizer.id_to_token(token) or "")


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; empty if it need not be there. Raises ``OSError`` or ``ValueError``."""
    if optional and not path.exists():
        return {}
    try:
        fields = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: must hold an object")
    return fields


def _alternatives(specials: list[Any]) -> re.Pattern[str] | None:
    """Finds the longest special token at the leftmost place, with the spaces that it takes along."""
    parts = [
        r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip
        for token in sorted(specials, key=lambda token: -len(token.content))
    ]
    return re.compile("|".join(parts)) if parts else None


def _marked(found: re.Match[str]) -> str:
    name = found.group()
    at = len(name) - len(name.lstrip()) + 1
    return name[:at] + _MARK + name[at:]


def _decoder_parts(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = (decoder or {}).get("decoders", [decoder] if decoder else [])
    return parts


def _bytes_of(path: Path, kinds: set[str]) -> Callable[[str], bytes]:
    """How the bytes of a token follow from its name, by the kind of tokenizer."""
    if "ByteLevel" in kinds:
        return _byte_level
    if kinds & {"Metaspace", "ByteFallback"}:
        return _sentencepiece
    raise ValueError(
        f"{path}: a decoder of {sorted(kinds)} is not served; it must be byte-level or Metaspace"
    )


def _byte_level(name: str) -> bytes:
    return b"".join(bytes([_ALPHABET[char]]) if char in _ALPHABET else char.encode() for char in name)


def _sentencepiece(name: str) -> bytes:
    if byte := _BYTE.fullmatch(name):
        return bytes([int(byte.group(1), 16)])
    return name.replace("\u2581", " ").encode()
