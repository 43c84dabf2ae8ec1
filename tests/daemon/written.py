"""Calls as clients write them."""

from __future__ import annotations

import json

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()


def request(
    body: bytes = BODY, *more: str, path: str = CHAT, line: str = "POST {} HTTP/1.1", length: str = ""
) -> bytes:
    """A call as clients write it."""
    lines = [line.format(path), "Host: here", "Content-Type: application/json", *more]
    if length != "none":
        lines.append(f"Content-Length: {length or len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body
