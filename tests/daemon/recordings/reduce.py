"""Reduces recorded requests of real clients to what they are made of, without any text of any product.

usage: reduce.py OUT.jsonl RECORDED.jsonl [RECORDED.jsonl ...]

A recorded line is {"method", "path", "headers", "body"}. A reduced line keeps method, path, the headers
that say who calls, and the whole structure of the body. Each text becomes "t:<hash>:<length>": equal texts
stay equal. Ids, names, roles and marks stay; schemas of tools become {"type": "object"}. Names of
directories of the machine that recorded are in texts only, so none is left.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

KEPT_HEADERS = re.compile(
    r"user-agent|anthropic-version|x-claude-code-.*|x-codex-parent.*|x-codex-window.*|x-openai-subagent|"
    r"(x-)?(session|thread|client-request)-id|traceparent|x-stainless-retry-count"
)
KEPT_TEXTS = frozenset(
    {"role", "type", "id", "name", "call_id", "tool_use_id", "tool_call_id", "model", "status", "namespace"}
    | {"tool_choice", "arguments", "command", "cmd", "session_id", "thread_id", "effort", "stop"}
    | {"prompt_cache_key", "include", "summary", "verbosity"}
)
BILLING = re.compile(r"x-anthropic-billing-header: [\w .;=-]*")
SCHEMAS = frozenset({"input_schema", "parameters", "schema", "format"})


def reduced(value: Any, key: str = "") -> Any:
    """The value without its texts."""
    if isinstance(value, dict):
        return {
            name: {"type": "object"} if name in SCHEMAS and isinstance(inner, dict) else reduced(inner, name)
            for name, inner in value.items()
            if name != "client_metadata"
        }
    if isinstance(value, list):
        return [reduced(inner, key) for inner in value]
    if key == "user_id" and isinstance(value, str):
        return json.dumps({"session_id": json.loads(value)["session_id"]})
    if not isinstance(value, str) or not value or key in KEPT_TEXTS or BILLING.fullmatch(value):
        return value
    return f"t:{hashlib.sha256(value.encode()).hexdigest()[:12]}:{len(value)}"


def main() -> None:
    lines = []
    for name in sys.argv[2:]:
        for line in Path(name).read_text().splitlines():
            row = json.loads(line)
            headers = {k.lower(): v for k, v in row["headers"].items() if KEPT_HEADERS.fullmatch(k.lower())}
            kept = {"client": Path(name).stem, "method": row["method"], "path": row["path"]}
            kept |= {"headers": headers, "body": reduced(row["body"])}
            lines.append(json.dumps(kept, separators=(",", ":")))
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
