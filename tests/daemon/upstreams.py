"""Servers that a test writes byte by byte, and a daemon in front of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from agentsched.daemon.settings import Settings
from agentsched.daemon.upstream.server import UpstreamDaemon
from agentsched.engines.upstream.engine import UpstreamSettings
from tests.daemon.serving import Served, until

USAGE: dict[str, Any] = {
    "prompt_tokens": 120,
    "completion_tokens": 7,
    "total_tokens": 127,
    "prompt_tokens_details": {"cached_tokens": 100},
}


@dataclass
class Got:
    """A request as it came, and the way to answer it."""

    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    gone: asyncio.Event

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode().split("\r\n")[1:]
        return {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name
        }

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def whole(self, body: Any, status: str = "200 OK", extra: str = "") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\n{extra}\r\n"
        await self.raw(head.encode() + data)

    async def begin(self, extra: str = "") -> None:
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n{extra}\r\n"
        )
        await self.raw(head.encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    def cut(self) -> None:
        self.writer.transport.abort()


Answer = Callable[[Got], Awaitable[None]]


@dataclass
class Double:
    """A server on loopback. ``answer`` is for calls; ``health`` is its status there; ``others`` are answers
    by path, and ``asked`` what was sent there; ``declared`` stands behind its URL."""

    answer: Answer
    health: str = "200 OK"
    port: int = 0
    declared: str = ""
    requests: list[Got] = field(default_factory=list)
    connections: int = 0
    others: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """As if the process ended."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    await self._one(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        got = Got(head, b"", writer, asyncio.Event())
        if length := got.headers.get("content-length"):
            got.body = await reader.readexactly(int(length))
        path = got.line.split()[1].partition("?")[0]
        if path == "/health":
            await got.whole({}, self.health)
            return
        if path in self.others:
            self.asked.append((path, got.body))
            await got.whole(self.others[path])
            return
        if path in ("/server_info", "/get_server_info", "/metrics", "/version", "/v1/models"):
            await got.whole({}, "404 Not Found")
            return
        self.requests.append(got)
        watch = asyncio.create_task(_until_gone(reader, got))
        try:
            await self.answer(got)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)


async def _until_gone(reader: asyncio.StreamReader, got: Got) -> None:
    """The daemon sends nothing before its answer has come, so an end here is that it went away."""
    await until(reader.at_eof, "the daemon goes away")
    got.gone.set()


@asynccontextmanager
async def in_front_of(
    *doubles: Double, listening: bool = True, kv_tokens: int | None = 100_000, **settings: Any
) -> AsyncIterator[Served]:
    """A daemon before these servers."""
    for double in doubles:
        if listening:
            await double.listen()
    upstream: dict[str, Any] = {"poll_s": 0.05}
    upstream |= {name: settings.pop(name) for name in ("silence_s", "poll_s", "fields") if name in settings}
    api_key, declared = settings.pop("api_key", None), settings.pop("declared", None)
    chosen = Settings(
        **({"port": 0, "drain_s": 0.1, "silence_s": settings.pop("white_space_s", 30.0)} | settings)
    )
    upstreams = [
        UpstreamSettings(url=double.url + double.declared, kv_tokens=kv_tokens, **upstream)
        for double in doubles
    ]
    try:
        async with (
            UpstreamDaemon(upstreams, chosen, api_key=api_key, declared=declared) as daemon,
            aiohttp.ClientSession() as http,
        ):
            served = Served(daemon, http, [])
            if listening:
                await attached(served, len(doubles))
            yield served
    finally:
        for double in doubles:
            if double._server is not None:
                await double.close()


async def attached(served: Served, count: int) -> None:
    """Wait until so many engines are there."""
    await until(lambda: len(served.daemon.engines) == count, f"{count} engines are there")


def answered(text: str = "hello", **message: Any) -> dict[str, Any]:
    """A chat completion."""
    said = {"role": "assistant", "content": text} | message
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
        "usage": USAGE,
    }


def event(body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def delta(text: str) -> bytes:
    """A chunk of a streamed chat completion, in a spelling of its own."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return event(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    )


def counted() -> bytes:
    """The chunk with the usage."""
    return event(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": USAGE,
        }
    )


DONE = b"data: [DONE]\n\n"


async def streams(got: Got, texts: Sequence[str] = ("he", "llo")) -> None:
    """A well-behaved stream."""
    await got.begin()
    for text in texts:
        await got.chunk(delta(text))
    if b'"include_usage":true' in got.body.replace(b" ", b""):
        await got.chunk(counted())
    await got.chunk(DONE)
    await got.end()


async def plainly(got: Got) -> None:
    """A well-behaved answer, streamed if it is asked for so."""
    if json.loads(got.body).get("stream"):
        await streams(got)
    else:
        await got.whole(answered())


async def finished(served: Served, calls: int) -> None:
    async def done() -> bool:
        return bool(await served.metric("agentsched_calls_total", outcome="finished") == calls)

    await until(done, f"{calls} calls end")


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
