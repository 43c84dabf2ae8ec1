"""An open-loop load, on raw sockets: requests leave when they are due, whether earlier ones were answered
or not.

``python -m agentsched.workloads.bench._load`` takes one JSON object (``Plan``) on standard input and prints
one (``Told``). Times count from when a request was due, so a server that falls behind is charged for it.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
from collections import deque

import msgspec
import uvloop

from agentsched.workloads.bench._requests import body, request
from agentsched.workloads.summary import percentile


class Plan(msgspec.Struct, kw_only=True):
    """``rate`` requests a second until there were ``requests``. ``open_limit``: at most so many at once."""

    port: int
    size_bytes: int
    stream: bool
    rate: float
    requests: int
    timeout_s: float = 60.0
    first_number: int = 0


class Told(msgspec.Struct, kw_only=True):
    """Milliseconds. ``first``: to the first byte of the body of an answer; ``whole``: to its end."""

    answered: int
    failed: int
    chunks: int
    most_open: int
    seconds: float
    first_p50_ms: float
    first_p99_ms: float
    whole_p50_ms: float
    whole_p99_ms: float


class _Client(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = b""
        self._needed = -1
        self.due_s = 0.0
        self.first_s: float | None = None
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, data: bytes, due_s: float) -> None:
        self.due_s, self.first_s, self.busy = due_s, None, True
        self._buffer, self._needed = b"", -1
        self._transport.write(data)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._run.chunks += data.count(b"data: ")
        if self._needed == -1:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                self.fail()
                return
            at = head.find(b"content-length:")
            self._needed = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -2
            data, self._buffer = self._buffer[end + 4 :], b""
        if data and self.first_s is None:
            self.first_s = asyncio.get_running_loop().time()
        if self._needed >= 0:
            self._needed -= len(data)
            over = self._needed <= 0
        else:
            self._buffer = (self._buffer + data)[-7:]
            over = self._buffer.endswith(b"\r\n0\r\n\r\n")
        if over:
            self.busy = False
            self._run.answered(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self.fail()

    def fail(self) -> None:
        self.busy = False
        self._transport.abort()  # type: ignore[attr-defined]
        self._run.failed()


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._idle: deque[_Client] = deque()
        self._open = self._most_open = self._failed = 0
        self._first_s: list[float] = []
        self._whole_s: list[float] = []
        self._over = asyncio.Event()
        self.chunks = 0

    def answered(self, client: _Client) -> None:
        now = asyncio.get_running_loop().time()
        self._whole_s.append(now - client.due_s)
        self._first_s.append((client.first_s or now) - client.due_s)
        self._idle.append(client)
        self._ended()

    def failed(self) -> None:
        self._failed += 1
        self._ended()

    def _ended(self) -> None:
        self._open -= 1
        if len(self._whole_s) + self._failed == self._plan.requests:
            self._over.set()

    async def go(self) -> Told:
        loop = asyncio.get_running_loop()
        plan = self._plan
        template = body(plan.size_bytes, stream=plan.stream)
        begun_s = loop.time()
        for number in range(plan.requests):
            due_s = begun_s + number / plan.rate
            if (early_s := due_s - loop.time()) > 0:
                await asyncio.sleep(early_s)
            await self._send(request(template, plan.first_number + number), due_s)
        try:
            async with asyncio.timeout(plan.timeout_s):
                await self._over.wait()
        except TimeoutError:
            self._failed = plan.requests - len(self._whole_s)
        return self._told(loop.time() - begun_s)

    async def _send(self, data: bytes, due_s: float) -> None:
        self._open += 1
        self._most_open = max(self._most_open, self._open)
        if self._idle:
            self._idle.popleft().send(data, due_s)
            return
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_connection(lambda: _Client(self), "127.0.0.1", self._plan.port)
        except OSError:
            self.failed()
        else:
            client.send(data, due_s)

    def _told(self, seconds: float) -> Told:
        first, whole = self._first_s or [float("nan")], self._whole_s or [float("nan")]
        return Told(
            answered=len(self._whole_s),
            failed=self._failed,
            chunks=self.chunks,
            most_open=self._most_open,
            seconds=seconds,
            first_p50_ms=1e3 * statistics.median(first),
            first_p99_ms=1e3 * percentile(first, 99),
            whole_p50_ms=1e3 * statistics.median(whole),
            whole_p99_ms=1e3 * percentile(whole, 99),
        )


def main() -> None:
    """See above."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)

    async def go() -> Told:
        return await Run(plan).go()

    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(go())))


if __name__ == "__main__":
    main()
