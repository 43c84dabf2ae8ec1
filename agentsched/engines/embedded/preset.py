"""Models that can be made on the spot: a config of known cost, random weights, our own tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from agentsched.engines.embedded.tokenizer import (
    CORPUS_BYTES,
    END,
    SPECIAL_TOKENS,
    TEMPLATE,
    VOCABULARY,
    standard_library,
    train_tokenizer,
)

SEED_KEY = "random_weights_seed"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer_config.json", "chat_template.jinja"

# Sized by measurement on one Zen 4 core in fp32: a prefill of 14,000 tokens takes 1.0 s and one of 18,000
# 1.5 s, nearly all of it attention; a decode step of 8 sequences at 8,000 tokens each takes 2.7 ms. One
# small key head keeps decode, which reads all of KV, cheap beside prefill, as it is on a GPU.
_DEMO: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 32768,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
    "dtype": "float32",
    SEED_KEY: 0,
}
# For tests: the same shape of model at a hundredth of the cost.
_TINY = _DEMO | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
}
PRESETS: dict[str, dict[str, Any]] = {"demo": _DEMO, "tiny": _TINY}


def ensure_model(
    cache: Path, *, progress: Callable[[str], None], preset: str = "demo", seed: int = 0
) -> Path:
    """The folder inside ``cache`` with the preset's config, tokenizer and chat template.

    Made if it is not there (some seconds: the tokenizer is trained), under a name that changes with
    all that it depends on; ``progress`` gets a line of text before each slow part. Raises
    ``ValueError`` for an unknown preset and ``OSError`` if the cache cannot be written.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    config = PRESETS[preset] | {
        SEED_KEY: seed,
        "eos_token_id": SPECIAL_TOKENS.index(END),
        "bos_token_id": None,
    }
    recipe = [
        config,
        SPECIAL_TOKENS,
        TEMPLATE,
        CORPUS_BYTES,
        platform.python_version(),
        tokenizers.__version__,
    ]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / f"{preset}-{digest}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        progress(f"Training a tokenizer of {VOCABULARY:,} tokens on Python's standard library")
        _write(folder, config)
        progress(f"Model ready in {folder}")
    return folder


def _write(folder: Path, config: dict[str, Any]) -> None:
    """All or nothing: two processes may make the same folder, and one may be killed half way."""
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        train_tokenizer(standard_library()).save(str(made / TOKENIZER))
        (made / CHAT_TEMPLATE).write_text(TEMPLATE, "utf-8")
        (made / TOKENIZER_CONFIG).write_text(json.dumps({"eos_token": END}) + "\n", "utf-8")
        (made / CONFIG).write_text(json.dumps(config, indent=1) + "\n", "utf-8")
        made.chmod(0o755)
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
