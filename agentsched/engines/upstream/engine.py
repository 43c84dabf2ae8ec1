"""An upstream server as an engine of the daemon: is it there, what room has it, and how to send it a
request.

What service it gives is found at its start, and said in the log (``dialect.py``). With our plugin in it
(``engines/sglang``) it takes orders and reports by a channel of its own; else its dialect carries out what
it can of the orders, by what requests say and by sessions that are closed, and reports are made from
evidence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import StepReport
from agentsched.core.standing import StandingOrders
from agentsched.engines.contract import Capabilities, EngineGone
from agentsched.engines.sglang.place import socket_path
from agentsched.engines.streams import renamed
from agentsched.engines.upstream.declared import apart
from agentsched.engines.upstream.dialect import NOTHING, SALT, Added, Dialect, dialect_of
from agentsched.engines.upstream.evidence import Evidence
from agentsched.engines.upstream.orders import NoChannel, OrdersLink
from agentsched.engines.upstream.pool import Address, Outgoing, Pool, fetch
from agentsched.engines.upstream.probe import Told, is_up, probe
from agentsched.engines.upstream.readings import Reading
from agentsched.engines.upstream.sessions import Sessions
from agentsched.engines.upstream.wire import Connection, Exchange, Fault, Header, UpstreamFault

if TYPE_CHECKING:
    from agentsched.engines.upstream.event_feed import EventFeed

_log = logging.getLogger(__name__)

UNBOUNDED_RUNNING = 1_000_000
MOST_MISSED = 3
"""So many polls in a row without an answer, and the server counts as gone. Refused connections count at
once."""

NEWS_S = 0.25
"""So often at most is what its events tell reported on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """``url`` may be followed by what the server does not tell (``declared.py``). ``kv_tokens``: the server's
    room for KV, in tokens; None asks the server. ``api_key``: for its own requests (polls and probes); those
    of clients carry theirs. ``fields``: requests may get fields. Times in seconds."""

    url: str
    kv_tokens: int | None = None
    api_key: str | None = None
    fields: bool = True
    poll_s: float = 2.0
    poll_timeout_s: float = 5.0
    silence_s: float = 600.0


class UpstreamEngine:
    """See ``Engine``. One object is one life of the server: from when it is there until it is gone."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._url, self._declared = apart(settings.url)
        address = Address.parse(self._url)
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
        self._doubted = self._news = False
        self._look = asyncio.Event()
        self._orders = StandingOrders()
        self._dialect = Dialect()
        self._sessions: Sessions | None = None
        self._feed: EventFeed | None = None
        self._reading: Reading | None = None
        self._unsalted: set[str] = set()

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        told, dialect = self._told, self._dialect
        assert told is not None, "the engine has not been started"
        retains = self._link is not None
        return Capabilities(
            kind=told.kind,
            capacity_tokens=told.capacity_tokens,
            block_tokens=told.block_tokens,
            max_context_tokens=told.max_context_tokens or told.capacity_tokens,
            vocabulary=0,
            max_running=told.max_running or UNBOUNDED_RUNNING,
            ranks=retains or dialect.ranks,
            retention=retains or dialect.pins,
            tail_eviction=retains,
            recorded_outputs=told.recorded,
            service=dialect.service,
        )

    async def start(self) -> None:
        """Returns once the server is there, however long that takes. Raises ``EngineGone`` if it is
        there but nobody says how much KV it has."""
        waiting = False
        while (told := await self._first_look()) is None:
            if not waiting:
                _log.warning("waiting for the engine at %s", self._url)
            waiting = True
            await asyncio.sleep(self._settings.poll_s)
        capacity_tokens = self._settings.kv_tokens or told.capacity_tokens
        if not capacity_tokens:
            raise EngineGone(
                f"{self._url} does not tell how many tokens of KV it has room for (SGLang does in "
                "/server_info, vLLM in /metrics); say it with --upstream-kv-tokens"
            )
        self._told = told = msgspec.structs.replace(told, capacity_tokens=capacity_tokens)
        self._evidence = Evidence(self._name, capacity_tokens)
        if told.plugin_port:
            await self._open_channel(told.plugin_port)
        await self._speak(told)

    async def _speak(self, told: Told) -> None:
        """Find what service it gives, and say so."""
        self._dialect = dialect = dialect_of(
            told, self._declared, plugin=self._link is not None, fields=self._settings.fields
        )
        if dialect.pins:
            self._sessions = Sessions(self._orders, self._pool, self._name, self._headers)
        if dialect.events is not None:
            from agentsched.engines.upstream.event_feed import EventFeed  # needs ZMQ, which few have

            self._feed = EventFeed(dialect.events, self._name, self._hear)
            await self._feed.open()
        service = dialect.service
        _log.info(
            "engine %s: %s, %s tokens of KV, service: %s (%s)",
            self._name,
            f"{told.kind} {told.version}".rstrip(),
            told.capacity_tokens,
            service.level,
            "; ".join(service.does) or "calls are let in and placed",
        )
        for lack in service.lacks:
            _log.info("engine %s: not had: %s; to have it: %s", self._name, lack.what, lack.remedy)

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

    def _hear(self) -> None:
        if not self._news:
            self._news = True
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

    def added(self, path: str, program: str, salt: str, *, engaged: bool, own_session: bool = False) -> Added:
        """What a call at ``path`` is to get on its way. ``salt``: of its tenant, "" for none. Not
        ``engaged``: nothing that would act on the server. ``own_session``: it is in one of its client's."""
        dialect = self._dialect
        if not (dialect.names or dialect.ranks or salt):
            return NOTHING
        named = not dialect.pins or (engaged and self._sessions is not None and self._sessions.used)
        added = dialect.added(
            path,
            program=program if named else None,
            rank=self._orders.rank(program) if engaged else None,
            salt=salt,
            own_session=own_session,
        )
        if salt and SALT not in added.fields and path not in self._unsalted:
            self._unsalted.add(path)
            _log.warning(
                "engine %s cannot be told at %s whose KV a call may find: tenants find each other's there",
                self._name,
                path,
            )
        return added

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

    def began(self, context_tokens: int, added: Added) -> None:
        """A call of about so many tokens was sent, with what was added to it."""
        self._evidence.began(context_tokens)
        if added.session and self._sessions is not None:
            self._sessions.began(added.session)

    def over(self, context_tokens: int, added: Added) -> None:
        """That call ended, one way or another."""
        self._evidence.over(context_tokens)
        if added.session and self._sessions is not None:
            self._sessions.ended(added.session)

    def computed(self, *, prefilled_tokens: int, output_tokens: int, prefill_s: float) -> None:
        """What a call took, so far as can be told from here."""
        self._evidence.computed(
            prefilled_tokens=prefilled_tokens, output_tokens=output_tokens, prefill_s=prefill_s
        )

    async def order(self, orders: Sequence[EngineOrder]) -> None:
        """Never waits but for our plugin. Raises ``EngineGone`` if the server is gone."""
        if self._gone is not None:
            raise EngineGone(f"engine {self._name}: {self._gone}")
        if self._link is not None:
            await self._link.send(list(orders))
            return
        taken = [order for order in orders if self._orders.apply(order)]
        if self._sessions is not None:
            self._sessions.ordered(taken)

    async def reports(self) -> AsyncIterator[StepReport]:
        """Until polls fail, or a connection is refused."""
        own = self._link is None
        if own:
            yield self._report(snapshot=True)
        loop = asyncio.get_running_loop()
        missed, polled_s, told_s = 0, loop.time(), loop.time()
        while self._gone is None:
            while self._reported:
                yield self._reported.popleft()
            if own and self._news and loop.time() >= told_s + NEWS_S:
                told_s = loop.time()
                yield self._report()
            due_s = polled_s + self._settings.poll_s
            await self._wait(min(due_s, told_s + NEWS_S) if own and self._news else due_s)
            if self._gone is not None or not (self._doubted or loop.time() >= due_s):
                continue
            self._doubted = False
            fault = await self._ill()
            polled_s = loop.time()
            missed = 0 if fault is None else missed + 1
            if fault is not None and missed >= MOST_MISSED:
                self._lose(UpstreamFault(fault, f"{missed} polls of /health in a row failed"))
            elif own and fault is None and (await self._read() or self._evidence.news):
                told_s = loop.time()
                yield self._report()

    async def _wait(self, until_s: float) -> None:
        """For something to look at."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                await self._look.wait()
        self._look.clear()

    async def close(self) -> None:
        # A server that refuses connections may still be finishing what it has. One that is silent is not.
        for part in (self._link, self._sessions, self._feed):
            if part is not None:
                await part.close()
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

    async def _read(self) -> bool:
        """Look at its metrics; whether they say anything new. What cannot be read now stands as it was."""
        if self._dialect.read is None:
            return False
        try:
            answer = await fetch(self._pool, "/metrics", self._headers, self._settings.poll_timeout_s)
        except UpstreamFault as fault:
            _log.debug("engine %s: no metrics: %s", self._name, fault)
            return False
        reading = self._dialect.read(answer.body) if answer.status == 200 else None
        if reading is None or reading == self._reading:
            return False
        self._reading = reading
        return True

    def _lose(self, fault: UpstreamFault) -> None:
        self._gone = self._gone or fault
        self._look.set()

    def _report(self, *, snapshot: bool = False) -> StepReport:
        self._news = False
        self._orders.expire(time.monotonic())
        ledger = None if self._feed is None else self._feed.ledger
        return self._evidence.report(self._reading, ledger, snapshot=snapshot)
