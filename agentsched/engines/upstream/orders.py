"""The daemon's end of the channel to the plugin in an SGLang server: orders there, reports back.

The channel may break while the server serves on. Then the server keeps KV by recency alone, as soon as its
leases are over; that is said once, and the channel is tried again until it holds. All orders that stand are
sent anew then: they are numbered, so those that the server has are ignored there. A server that says it is
another process has none of the KV that was held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from agentsched.core.decisions import EngineOrder, EngineTerms, Prefetch, Rank, Release, Retain
from agentsched.core.events import StepReport
from agentsched.engines import wire
from agentsched.engines.sglang.place import UnsafePlace, check_peer
from agentsched.engines.wire import WireError, encode

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 18
HELLO_S = 5.0
KEPT_RELEASES = 10_000
"""The latest are sent anew, too: they may have been lost on the way. Leases end what is beyond that."""

_KINDS: dict[type[EngineOrder], str] = {Rank: "rank", Retain: "retain", Prefetch: "prefetch"}


class NoChannel(Exception):
    """The channel cannot be opened, or is not that of a plugin that this daemon understands."""


class Standing:
    """The orders that stand, as the server should know them."""

    def __init__(self) -> None:
        self._terms: EngineTerms | None = None
        self._orders: dict[tuple[str, str], EngineOrder] = {}
        self._released: dict[str, Release] = {}

    def take(self, orders: Iterable[EngineOrder]) -> None:
        """Note orders."""
        for order in orders:
            if isinstance(order, EngineTerms):
                self._terms = order
            elif isinstance(order, Release):
                for kind in _KINDS.values():
                    self._orders.pop((kind, order.program), None)
                self._released.pop(order.program, None)
                if len(self._released) >= KEPT_RELEASES:
                    del self._released[next(iter(self._released))]
                self._released[order.program] = order
            else:
                self._orders[_KINDS[type(order)], order.program] = order

    def all(self) -> list[EngineOrder]:
        """All that stand, and the latest releases; in their own order."""
        orders = [*self._released.values(), *self._orders.values()]
        if self._terms is not None:
            orders.append(self._terms)
        return sorted(orders, key=lambda order: order.seq)


class OrdersLink:
    """The channel to one server, from ``open`` to ``close``.

    ``report`` gets each of the server's reports, the first after each connection a snapshot; ``other_life``
    is called once if the server turns out to be another process than it was.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        report: Callable[[StepReport], None],
        other_life: Callable[[], None],
        retry_s: float,
    ) -> None:
        self._path = path
        self._name = name
        self._report = report
        self._other_life = other_life
        self._retry_s = retry_s
        self._standing = Standing()
        self._life = ""
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._writer is not None

    async def open(self) -> None:
        """Returns when the server has said hello. Raises ``NoChannel``."""
        reader = await self._connect()
        self._task = asyncio.create_task(self._keep(reader), name=f"channel of {self._name}")

    async def send(self, orders: list[EngineOrder]) -> None:
        """Write orders out, or keep them for when the channel is back."""
        writer = self._writer
        self._standing.take(orders)
        if writer is None or not orders:
            return
        writer.write(encode([wire.Orders(orders)]))
        with contextlib.suppress(ConnectionError):  # whoever reads sees the same, and deals with it
            await writer.drain()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._drop()

    async def _connect(self) -> asyncio.StreamReader:
        try:
            async with asyncio.timeout(HELLO_S):
                reader, writer = await asyncio.open_unix_connection(str(self._path))
        except (OSError, TimeoutError) as error:
            raise NoChannel(f"{self._path}: {error or 'no connection in time'}") from error
        try:
            check_peer(writer.get_extra_info("socket"))
            async with asyncio.timeout(HELLO_S):
                hello = await self._greeted(reader)
        except (OSError, TimeoutError, WireError, UnsafePlace) as error:
            writer.close()
            raise NoChannel(f"{self._path}: {error or 'no hello in time'}") from error
        except asyncio.CancelledError:
            writer.close()
            raise
        if self._life and hello.life != self._life:
            writer.close()
            self._other_life()
            raise NoChannel(f"{self._path}: the server there is another process now")
        self._life, self._writer = hello.life, writer
        if standing := self._standing.all():
            writer.write(encode([wire.Orders(standing)]))
        return reader

    async def _greeted(self, reader: asyncio.StreamReader) -> wire.Hello:
        """The server's hello, and what it says with it. Raises ``WireError``."""
        self._frames = wire.Frames()
        while not (messages := self._frames.for_daemon(await self._read(reader))):
            pass
        hello, *rest = messages
        if not isinstance(hello, wire.Hello):
            raise WireError(f"it began with {type(hello).__name__}, not with a hello")
        wire.check(hello)
        self._take(rest)
        return hello

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        data = await reader.read(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the server closed it")
        return data

    def _take(self, messages: Iterable[wire.ToDaemon]) -> None:
        for message in messages:
            if not isinstance(message, StepReport):
                raise WireError(f"it sent {type(message).__name__}, which is not what a plugin says")
            self._report(message)

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Read what comes; connect again when it ends."""
        while True:
            try:
                while True:
                    self._take(self._frames.for_daemon(await self._read(reader)))
            except (OSError, WireError) as error:
                _log.warning(
                    "engine %s: its channel is lost (%s): until it is back, nothing tells the server what KV "
                    "is worth",
                    self._name,
                    error,
                )
            self._drop()
            reader = await self._again()
            _log.warning("engine %s: its channel is back, and with it retention", self._name)

    async def _again(self) -> asyncio.StreamReader:
        while True:
            await asyncio.sleep(self._retry_s)
            try:
                return await self._connect()
            except NoChannel as error:
                _log.debug("engine %s: no channel: %s", self._name, error)

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
