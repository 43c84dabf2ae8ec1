"""A byte-level BPE tokenizer trained on the sources of Python's own standard library, and its template.

No tokenizer can be fetched where no model hub is reachable, and agents mostly read and write code:
the standard library is code that every machine has. Byte-level, so any text can be encoded.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SYSTEM, USER, ASSISTANT, TOOL = "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"
TOOL_CALL, END = "<|tool_call|>", "<|end|>"
SPECIAL_TOKENS = (END, SYSTEM, USER, ASSISTANT, TOOL, TOOL_CALL)

# Each message begins with its role's token and ends with <|end|>; tools are a first system message.
TEMPLATE = """\
{%- if tools -%}
{{- '<|system|>' -}}
{%- for tool in tools -%}
{{- '' if loop.first else '\\n' -}}{{- tool.get('function', tool) | tojson -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|' + message.role + '|>' + message.content -}}
{%- for call in message.tool_calls -%}
{{- '<|tool_call|>{"name": ' + call.function.name | tojson -}}
{{- ', "arguments": ' + call.function.arguments | tojson + '}' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

VOCABULARY = 8192
# The whole standard library is about 11 MB; the cap keeps training short should it ever grow.
CORPUS_BYTES = 16_000_000
# Installed packages differ by machine, and tests of the library are missing from some distributions.
_EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib"})


def train_tokenizer(corpus: Iterator[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train on texts; the same texts in the same order give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def standard_library(limit_bytes: int = CORPUS_BYTES) -> Iterator[str]:
    """Sources of the running interpreter's standard library, in order of their paths.

    Raises ``FileNotFoundError`` where the interpreter ships without sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    wanted = sorted(path.as_posix() for path in paths if _EXCLUDED.isdisjoint(path.parts))
    if not wanted:
        raise FileNotFoundError(f"no sources of the standard library in {root}: cannot train a tokenizer")
    for name in wanted:
        source = (root / name).read_text("utf-8", errors="replace")
        limit_bytes -= len(source)
        if limit_bytes < 0:
            return
        yield source


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (the alphabet of GPT-2).

    Printable Latin-1 characters stand for themselves, the other bytes for characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
