"""What the load consists of: chat completions of a stated size, of some programs in turn, no two of them
equal."""

from __future__ import annotations

import json
from pathlib import Path

PROGRAMS = 64
MARK = "@@@@@@@@@@"
"""Stands for the number of the request, in as many digits."""

_SESSION = "x-bench-session-id"
_PARAGRAPH = "The quick brown fox reads what the tool printed, thinks, and asks for the next file. " * 16


def body(size_bytes: int, *, stream: bool) -> bytes:
    """A conversation of about that size as JSON: turns of about 1.4 kB, as many as fit. ``MARK`` is in its
    last message."""
    messages: list[dict[str, str]] = [{"role": "system", "content": "You are an agent."}]
    turns = max(0, (size_bytes - 400) // (len(_PARAGRAPH) + 50))
    messages += [
        {"role": "assistant" if turn % 2 else "user", "content": _PARAGRAPH} for turn in range(turns)
    ]
    messages.append({"role": "user", "content": f"Go on with {MARK}. "})
    whole = {"model": "bench", "messages": messages, "max_tokens": 256, "temperature": 0}
    whole |= {"stream": True} if stream else {}
    short = size_bytes - len(json.dumps(whole, separators=(",", ":")))
    messages[-1]["content"] += "x" * max(0, short)
    return json.dumps(whole, separators=(",", ":")).encode()


def request(template: bytes, number: int) -> bytes:
    """One request of the load, as bytes on the wire."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer none\r\nUser-Agent: bench\r\n{_SESSION}: s{number % PROGRAMS}\r\n"
        f"Content-Length: {len(template)}\r\n\r\n"
    )
    return head.encode() + template.replace(MARK.encode(), b"%010d" % (number % 10**10))


def write_wrk_script(path: Path, template: bytes) -> None:
    """The same requests for wrk, which tells its figures as one line of JSON."""
    before, after = template.decode().split(MARK)
    path.write_text(
        f"""
local before, after, number = [==[{before}]==], [==[{after}]==], os.time() % 100000 * 10000
request = function()
  number = number + 1
  local headers = {{["Content-Type"] = "application/json", ["Authorization"] = "Bearer none",
    ["{_SESSION}"] = "s" .. number % {PROGRAMS}}}
  local body = before .. string.format("%010d", number) .. after
  return wrk.format("POST", "/v1/chat/completions", headers, body)
end
done = function(summary, latency, requests)
  local errors = summary.errors
  local form = 'JSON {{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "failed": %d}}\\n'
  io.write(string.format(form,
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""
    )
