"""A fast server for benchmarks of proxies: answers at once with what was prepared, and computes nothing.

``python -m agentsched.workloads.bench._fast_upstream PORT GAP_MS`` serves chat completions on 127.0.0.1. A
request whose body has ``"stream":true`` gets ``CHUNKS`` chunks, each written by itself, ``GAP_MS`` after
the one before.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

CHUNKS = 200
_HEAD = {"id": "chatcmpl-0123456789abcdef", "created": 1_700_000_000, "model": "bench"}
_USAGE = {
    "prompt_tokens": 250,
    "completion_tokens": CHUNKS,
    "total_tokens": 250 + CHUNKS,
    "prompt_tokens_details": {"cached_tokens": 192},
}
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(body: object) -> bytes:
    return _chunk(b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n")


def _plain(body: object) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(data),
        data,
    )


def _delta(delta: object, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return _event(_HEAD | {"object": "chat.completion.chunk", "choices": [choice]})


_TOKEN = _delta({"content": " token"})
_LAST = _delta({}, "stop")
_DONE = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_COUNTED = _event(_HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": _USAGE})
_MESSAGE = {"role": "assistant", "content": " token" * 40}
_WHOLE = _plain(
    _HEAD
    | {"object": "chat.completion", "usage": _USAGE}
    | {"choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}]}
)
_OTHER = _plain({"status": "ok", "object": "list", "data": [{"id": "bench", "object": "model"}]})


class Upstream(asyncio.Protocol):
    """One connection. Requests come one after the other, each with its length."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._data = bytearray()
        self._needed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= self._needed and (end := self._data.find(b"\r\n\r\n")) >= 0:
            self._needed = end + 4 + _length(self._data[:end].lower())
            if len(self._data) < self._needed:
                return
            request = bytes(self._data[: self._needed])
            del self._data[: self._needed]
            self._needed = 0
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if not request.startswith(b"POST /v1/chat"):
            self._write(_OTHER)
        elif b'"stream":true' in request:
            self._write(_STREAM_HEAD)
            self._stream(CHUNKS, counted=b'"include_usage":true' in request)
        else:
            self._write(_WHOLE)

    def _stream(self, left: int, *, counted: bool) -> None:
        if self._transport.is_closing():
            return
        if left > 1:
            self._write(_TOKEN)
            loop = asyncio.get_running_loop()
            loop.call_later(self._gap_s, lambda: self._stream(left - 1, counted=counted))
        else:
            self._write(_LAST)
            if counted:
                self._write(_COUNTED)
            self._write(_DONE)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)  # type: ignore[attr-defined]


def _length(head: bytes | bytearray) -> int:
    at = head.find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def _serve(port: int, gap_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: Upstream(gap_s), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 1e3))
