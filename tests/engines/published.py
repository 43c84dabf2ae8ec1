"""A publisher of KV events as SGLang and vLLM are: numbered batches on a PUB socket, and a ROUTER that
repeats them. Each batch is encoded as these servers do it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import msgspec
import pytest

WITHOUT = "KV events need pyzmq: pip install 'agentsched[kv-events]'"
zmq = pytest.importorskip("zmq", reason=WITHOUT)
sockets = pytest.importorskip("zmq.asyncio", reason=WITHOUT)

END = (-1).to_bytes(8, "big", signed=True)


def stored(
    blocks: list[Any], parent: Any = None, *, session: str | None = None, size: int = 16, **more: Any
) -> dict[str, Any]:
    event = {
        "type": "BlockStored",
        "block_hashes": blocks,
        "parent_block_hash": parent,
        "token_ids": list(range(size * len(blocks))),
        "block_size": size,
        "lora_id": None,
        "medium": "GPU",
    }
    return event | ({} if session is None else {"session_id": session}) | more


def removed(blocks: list[Any], **more: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": blocks, "medium": "GPU"} | more


CLEARED = {"type": "AllBlocksCleared"}


class Publisher:
    """``repeats``: whether it has a socket for that. Sockets are bound to ports of their own."""

    def __init__(self, *, repeats: bool = True, rank: int = 0) -> None:
        self.asked: list[int] = []
        self.sent: list[tuple[int, bytes]] = []
        self._rank = rank
        self._context = sockets.Context()
        self._pub = self._context.socket(zmq.PUB)
        self.port = self._pub.bind_to_random_port("tcp://127.0.0.1")
        self._router = self._context.socket(zmq.ROUTER) if repeats else None
        self.replay_port = self._router.bind_to_random_port("tcp://127.0.0.1") if self._router else 0
        self._time_s = 1_000.0
        self._number = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Publisher:
        if self._router is not None:
            self._task = asyncio.create_task(self._repeat(self._router))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def replay(self) -> str:
        return f"tcp://127.0.0.1:{self.replay_port}" if self.replay_port else ""

    async def publish(self, *events: Any, lost: bool = False) -> None:
        """``lost``: it does not arrive."""
        self._time_s += 1.0
        payload = msgspec.msgpack.encode([self._time_s, list(events), self._rank])
        self.sent.append((self._number, payload))
        if not lost:
            await self._pub.send_multipart([b"", self._number.to_bytes(8, "big"), payload])
        self._number += 1

    def restart(self) -> None:
        """It is another process, which knows nothing of what it sent before."""
        self._number = 0
        self.sent.clear()

    async def _repeat(self, router: Any) -> None:
        while True:
            who, _, since = await router.recv_multipart()
            self.asked.append(int.from_bytes(since, "big"))
            for number, payload in self.sent:
                if number >= self.asked[-1]:
                    await router.send_multipart([who, b"", b"", number.to_bytes(8, "big"), payload])
            await router.send_multipart([who, b"", b"", END, b""])
