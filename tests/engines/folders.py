"""Model folders in the shapes of the served families: small tokenizers, templates as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "def main(arguments: list[str]) -> None:\n    print('hello world', arguments)\n\n",
    '{"name": "bash", "arguments": {"command": "ls -l | grep x"}}\n',
    '{"name": "search", "parameters": {"query": "the weather in Paris", "count": 3}}\n',
    "user assistant system tool\n\nLet me look at the files, and then run the tests again.\n",
] * 20

QWEN = """\
{%- if tools %}<|im_start|>system
You have these tools:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Answer a call in <tool_call></tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' + message.content }}
{%- for call in message.tool_calls %}
{%- if message.content or not loop.first %}{{- '\n' }}{%- endif %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{%- if call.function.arguments is string %}{{- call.function.arguments }}
{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""

LLAMA = """\
{{- bos_token }}
{%- if tools is not none %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nTools:\n' }}
{%- for tool in tools %}{{- tool | tojson(indent=4) + '\n' }}{%- endfor %}
{{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}
{%- if 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('one tool call at a time') }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
{%- elif message.role == 'tool' %}
{{- message.content | tojson }}
{%- else %}
{{- message.content | trim }}
{%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""

MISTRAL = """\
{{- bos_token }}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and message == users[-1] %}
{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{{- '[INST] ' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{- raise_exception('ids must have nine characters') }}{%- endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
{{- ']' + eos_token if loop.last else ', ' }}
{%- endfor %}
{%- elif message.role == 'assistant' %}
{{- ' ' + message.content | trim + eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}' }}
{{- '[/TOOL_RESULTS]' }}
{%- else %}
{{- raise_exception('only user, assistant and tool are known') }}
{%- endif %}
{%- endfor %}
"""

MISTRAL_ARGS = """\
{{- bos_token }}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and message == users[-1] %}
{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}
{{- message.content }}
{%- for call in message.tool_calls %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}
{%- endfor %}
{{- eos_token }}
{%- else %}
{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}
"""

_MISTRAL_TOKENS = ["<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
_MISTRAL_TOKENS += ["[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
_LLAMA_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_QWEN_TEXT = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen": {
        "template": QWEN,
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "text": _QWEN_TEXT,
        "eos_token": "<|im_end|>",
        "model_type": "qwen3",
    },
    "llama": {
        "template": LLAMA,
        "special": [*_LLAMA_TOKENS, "<|eom_id|>", "<|python_tag|>"],
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "model_type": "llama",
    },
    "mistral": {
        "template": MISTRAL,
        "special": _MISTRAL_TOKENS,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_type": "mistral",
        "sentencepiece": True,
    },
    "mistral-args": {
        "template": MISTRAL_ARGS,
        "special": [*_MISTRAL_TOKENS, "[ARGS]", "[CALL_ID]"],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_type": "mistral",
    },
}
VOCABULARY = 600


def family_folder(folder: Path, family: str, **config: Any) -> Path:
    """A folder with all but weights; ``config`` goes into ``config.json``."""
    parts = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _sentencepiece(parts) if parts.get("sentencepiece") else _byte_level(parts)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in parts.get("text", ())])
    tokenizer.save(str(folder / "tokenizer.json"))
    named: dict[str, Any] = {name: parts[name] for name in ("bos_token", "eos_token") if name in parts}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": parts["template"],
        **named,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    fields: dict[str, Any] = {
        "model_type": parts["model_type"],
        "vocab_size": VOCABULARY + 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "sliding_window": None,
        "random_weights_seed": 5,
        "eos_token_id": tokenizer.token_to_id(parts["eos_token"]),
    }
    (folder / "config.json").write_text(json.dumps(fields | config))
    return folder


def _byte_level(parts: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=parts["special"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _sentencepiece(parts: dict[str, Any]) -> Tokenizer:
    """As the older Mistrals have it: spaces are part of words, and rare characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", *parts["special"], *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fields = json.loads(tokenizer.to_str())
    # Bytes are no special tokens, they only had to come first.
    fields["added_tokens"] = [t for t in fields["added_tokens"] if not t["content"].startswith("<0x")]
    fields["normalizer"] = None
    fields["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "first",
        "split": False,
    }
    replace = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    steps = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    fields["decoder"] = {"type": "Sequence", "decoders": steps}
    return Tokenizer.from_str(json.dumps(fields))
