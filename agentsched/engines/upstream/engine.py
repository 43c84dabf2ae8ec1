"""An upstream server as an engine of the daemon: is it there, what room has it, and how to send it a
request.

Its service level is found at its start, and said in the log:

* ``order``: calls are let in, ordered and placed by the core before they are sent; what is sent runs as the
  server likes. It takes no orders. Its reports are estimates, made from the calls that pass: how fast it
  prefills, and what the contexts of the programs that are in it sum up to.
* ``retention``: our plugin is in the server (``engines/sglang``), and carries out all orders; it reports
  what is held and what it computes. Requests say whose they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import msgspec

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import StepReport
from agentsched.engines.contract import Capabilities, EngineGone
from agentsched.engines.sglang.place import socket_path
from agentsched.engines.streams import renamed
from agentsched.engines.upstream.orders import NoChannel, OrdersLink
from agentsched.engines.upstream.pool import Address, Outgoing, Pool
from agentsched.engines.upstream.probe import Told, is_up, probe
from agentsched.engines.upstream.wire import Connection, Exchange, Fault, Header, UpstreamFault

_log = logging.getLogger(__name__)

UNBOUNDED_RUNNING = 1_000_000
MOST_MISSED = 3
"""So many polls in a row without an answer, and the server counts as gone. Refused connections count at
once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """``kv_tokens``: the server's room for KV, in tokens; None asks the server. ``api_key``: for its own
    requests (polls and probes); those of clients carry theirs. Times in seconds."""

    url: str
    kv_tokens: int | None = None
    api_key: str | None = None
    poll_s: float = 2.0
    poll_timeout_s: float = 5.0
    silence_s: float = 600.0


class UpstreamEngine:
    """See ``Engine``. One object is one life of the server: from when it is there until it is gone."""

    def __init__(self, settings: UpstreamSettings) -> None:
        address = Address.parse(settings.url)
        self._settings = settings
        self._name = address.name
        self._pool = Pool(address, silence_s=settings.silence_s)
        self._headers: list[Header] = [(b"Accept", b"*/*")]
        if settings.api_key:
            self._headers.append((b"Authorization", b"Bearer " + settings.api_key.encode()))
        self._told: Told | None = None
        self._gone: UpstreamFault | None = None
        self._link: OrdersLink | None = None
        self._reported: deque[StepReport] = deque()
        self._doubted = False
        self._look = asyncio.Event()
        self._prefilled_tokens = self._decoded_tokens = 0
        self._busy_s = 0.0
        self._running = self._live_tokens = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def retains(self) -> bool:
        """Whether it carries orders out; requests have to say whose they are then."""
        return self._link is not None

    @property
    def capabilities(self) -> Capabilities:
        told = self._told
        assert told is not None, "the engine has not been started"
        return Capabilities(
            kind=told.kind,
            capacity_tokens=told.capacity_tokens,
            block_tokens=told.block_tokens,
            max_context_tokens=told.max_context_tokens or told.capacity_tokens,
            vocabulary=0,
            max_running=told.max_running or UNBOUNDED_RUNNING,
            ranks=self.retains,
            retention=self.retains,
            tail_eviction=self.retains,
        )

    async def start(self) -> None:
        """Returns once the server is there, however long that takes. Raises ``EngineGone`` if it is
        there but nobody says how much KV it has."""
        waiting = False
        while (told := await self._first_look()) is None:
            if not waiting:
                _log.warning("waiting for the engine at %s", self._settings.url)
            waiting = True
            await asyncio.sleep(self._settings.poll_s)
        capacity_tokens = self._settings.kv_tokens or told.capacity_tokens
        if not capacity_tokens:
            raise EngineGone(
                f"{self._settings.url} does not tell how many tokens of KV it has room for (SGLang does in "
                "/get_server_info, vLLM in /metrics); say it with --upstream-kv-tokens"
            )
        self._told = msgspec.structs.replace(told, capacity_tokens=capacity_tokens)
        if told.plugin_port:
            await self._open_channel(told.plugin_port)
        level = (
            "retention (agentsched's plugin is in it)"
            if self.retains
            else "order (calls are let in and placed; what KV it keeps, it decides itself)"
        )
        _log.info(
            "engine %s: %s, %s tokens of KV, service: %s", self._name, told.kind, capacity_tokens, level
        )

    async def _open_channel(self, port: int) -> None:
        link = OrdersLink(
            socket_path(port),
            self._name,
            report=self._take,
            other_life=lambda: self._lose(UpstreamFault(Fault.CUT, "its process is another one now")),
            retry_s=self._settings.poll_s,
        )
        try:
            await link.open()
        except NoChannel as error:
            _log.warning(
                "engine %s has agentsched's plugin, but no channel to it can be opened (%s): it is served "
                "without retention. The daemon has to run beside the server, as the same user",
                self._name,
                error,
            )
        else:
            self._link = link

    def _take(self, report: StepReport) -> None:
        self._reported.append(renamed(report, self._name))
        self._look.set()

    async def send(self, outgoing: Outgoing, exchange: Exchange) -> Connection:
        """Send a request; its exchange hears of the answer. ``release`` the connection afterwards.

        Raises ``UpstreamFault`` if no connection can be had; the server is taken for gone then.
        """
        try:
            return await self._pool.send(outgoing, exchange)
        except UpstreamFault as fault:
            self._lose(fault)
            raise

    def send_at_once(self, outgoing: Outgoing, exchange: Exchange) -> Connection | None:
        """As ``send``, if a connection is there already; None if that has to be made first."""
        return self._pool.send_at_once(outgoing, exchange)

    def release(self, connection: Connection) -> None:
        """Give a connection back, whether its exchange is over or not."""
        self._pool.release(connection)

    def doubt(self) -> None:
        """A call failed: look at once whether the server is still there."""
        self._doubted = True
        self._look.set()

    def began(self, context_tokens: int) -> None:
        """A call of about so many tokens was sent."""
        self._running += 1
        self._live_tokens += context_tokens

    def over(self, context_tokens: int) -> None:
        """That call ended, one way or another."""
        self._running -= 1
        self._live_tokens -= context_tokens

    def computed(self, *, prefilled_tokens: int, output_tokens: int, prefill_s: float) -> None:
        """What a call took, so far as can be told from here."""
        self._prefilled_tokens += prefilled_tokens
        self._decoded_tokens += output_tokens
        self._busy_s += prefill_s

    async def order(self, orders: Sequence[EngineOrder]) -> None:
        """A server without our plugin takes none. Raises ``EngineGone`` if it is gone."""
        if self._gone is not None:
            raise EngineGone(f"engine {self._name}: {self._gone}")
        if self._link is not None:
            await self._link.send(list(orders))

    async def reports(self) -> AsyncIterator[StepReport]:
        """Until polls fail, or a connection is refused."""
        if not self.retains:
            yield self._estimate(snapshot=True)
        loop = asyncio.get_running_loop()
        missed, polled_s = 0, loop.time()
        while self._gone is None:
            while self._reported:
                yield self._reported.popleft()
            try:
                async with asyncio.timeout_at(polled_s + self._settings.poll_s):
                    await self._look.wait()
            except TimeoutError:
                self._doubted = True
            self._look.clear()
            if self._gone is not None or not self._doubted:
                continue
            self._doubted = False
            fault = await self._ill()
            polled_s = loop.time()
            missed = 0 if fault is None else missed + 1
            if fault is not None and missed >= MOST_MISSED:
                self._lose(UpstreamFault(fault, f"{missed} polls of /health in a row failed"))
            elif not self.retains and (self._busy_s or self._decoded_tokens):
                yield self._estimate()

    async def close(self) -> None:
        # A server that refuses connections may still be finishing what it has. One that is silent is not.
        if self._link is not None:
            await self._link.close()
        silent = self._gone is not None and self._gone.fault is Fault.SILENT
        self._pool.close(self._gone if silent else None)

    async def _first_look(self) -> Told | None:
        try:
            if await is_up(self._pool, self._headers, self._settings.poll_timeout_s):
                return await probe(self._pool, self._headers)
        except UpstreamFault as fault:
            _log.debug("engine %s is not there: %s", self._name, fault)
        return None

    async def _ill(self) -> Fault | None:
        """What is wrong with the server, by one poll. One that answers so takes no calls, but may finish
        some."""
        begun_s = asyncio.get_running_loop().time()
        try:
            up = await is_up(self._pool, self._headers, self._settings.poll_timeout_s)
        except UpstreamFault as fault:
            if fault.fault is Fault.REFUSED:
                self._lose(fault)
            return None if self._pool.heard_since(begun_s) else Fault.SILENT  # None: busy, but there
        return None if up else Fault.REFUSED

    def _lose(self, fault: UpstreamFault) -> None:
        self._gone = self._gone or fault
        self._look.set()

    def _estimate(self, *, snapshot: bool = False) -> StepReport:
        free_tokens = max(0, self.capabilities.capacity_tokens - self._live_tokens)
        report = StepReport(
            engine=self._name,
            free_tokens=free_tokens,
            evictable_tokens=0,
            snapshot=snapshot,
            running=self._running,
            prefilled_tokens=self._prefilled_tokens,
            decoded_tokens=self._decoded_tokens,
            step_s=self._busy_s,
        )
        self._prefilled_tokens = self._decoded_tokens = 0
        self._busy_s = 0.0
        return report
