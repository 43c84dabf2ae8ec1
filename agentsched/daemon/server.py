"""The daemon put together: core, gate, calls, gateway and one supervised engine on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from aiohttp import web

from agentsched import __version__
from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.core.expiry import Expiry
from agentsched.core.log import Header
from agentsched.daemon.access import Access, others_reach
from agentsched.daemon.accounts import Accounts, Declared
from agentsched.daemon.admin_api import AdminApi
from agentsched.daemon.calls import Calls
from agentsched.daemon.care import PrefixCare
from agentsched.daemon.charges import ChargesMeter
from agentsched.daemon.dashboard.live import Live
from agentsched.daemon.dashboard.pages import Pages
from agentsched.daemon.dashboard.recorded import STARTED, Recording
from agentsched.daemon.delivery import Delivery
from agentsched.daemon.errors import ApiError, engine_gone
from agentsched.daemon.eventlog import EventLog, Limits
from agentsched.daemon.gate import Gate
from agentsched.daemon.gateway import Gateway
from agentsched.daemon.host import Host, Watcher
from agentsched.daemon.httplog import http_log
from agentsched.daemon.identity import Identities
from agentsched.daemon.listening import listen, url_of
from agentsched.daemon.metrics import Metrics
from agentsched.daemon.openapi import document
from agentsched.daemon.operations import Operation
from agentsched.daemon.patience import Patience
from agentsched.daemon.programs import Programs
from agentsched.daemon.programs_api import ProgramsApi
from agentsched.daemon.settings import Settings
from agentsched.daemon.sharing import SharedPrefixes
from agentsched.daemon.state import Database, Keeper, records
from agentsched.daemon.status_api import StatusApi
from agentsched.daemon.supervisor import Supervisor
from agentsched.daemon.tenancy import Tenancies
from agentsched.daemon.tool_worth import ToolWorth
from agentsched.engines.contract import Engine, EngineGone
from agentsched.engines.frontend import Frontend

_log = logging.getLogger(__name__)

_SHUTDOWN_RETRY_S = 5.0


class NoKeys(Exception):
    """Others than this machine could call, and nothing would tell who they are."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"there are no API keys, so that only this machine may call: {host!r} is open to others. Make "
            "keys ('agentsched key new TENANT', 'agentsched key new --admin') and give the file with them as "
            "--tenants FILE, or serve on 127.0.0.1"
        )


class Daemon:
    """One gateway. ``async with`` starts it and stops it in order; ``wait`` says when it cannot go on.

    ``make_engine`` is called for each life of the engine; ``make_identities``, with what the names of a
    tenant's programs begin with, for each tenant; ``declared`` are tenants and keys; ``run`` goes into the
    event log's header; ``watchers`` see what the core handles. Entering raises ``OSError`` if the address or
    the log cannot be used, ``StateError`` if the state cannot, ``NoKeys`` if others than this machine could
    call without a key, and ``EngineGone`` if the engine does not start.
    """

    _calls_kind: type[Calls] = Calls
    _gateway_kind: type[Gateway] = Gateway

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        frontend: Frontend,
        settings: Settings,
        make_identities: Callable[[str], Identities] = Identities,
        accounts: Accounts | None = None,
        *,
        declared: Declared | None = None,
        run: Mapping[str, str | int | float] | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self._settings = settings
        self._make_engine = make_engine
        self._frontend = frontend
        self._make_identities = make_identities
        self.accounts = accounts or Accounts()
        self._declared = declared or Declared()
        self._run = dict(run or {})
        self._watchers = watchers
        self._stack = contextlib.AsyncExitStack()
        self._supervision: asyncio.Task[None] | None = None
        self.url = ""

    @property
    def engines(self) -> dict[str, Engine]:
        """The attached engines by name."""
        return self._host.engines

    @property
    def state_failing(self) -> bool:
        """Whether what outlives the daemon cannot be written at the moment."""
        return self._keeper is not None and self._keeper.failing

    async def __aenter__(self) -> Daemon:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def reload(self, settings: Settings, declared: Declared | None = None) -> None:
        """Take over what may change while it runs (``settings.LIVE``); the rest stays as it is. ``declared``:
        tenants and keys as they are now."""
        if declared is not None:
            self.accounts.declare(declared)
            self._shared.declare(declared.shared_prefixes)
        if settings.observe != self._settings.observe:
            self._host.post(ev.PolicyEngaged(engaged=not settings.observe))
        self._settings = settings
        self._patience.take(settings)
        self._care.off = settings.no_care

    async def wait(self) -> None:
        """Raises ``EngineGone`` once the engine has failed too often; else waits for ever."""
        assert self._supervision is not None
        await asyncio.shield(self._supervision)

    async def _start(self) -> None:
        settings, stack = self._settings, self._stack
        # Before anything slow, so that a port or a log that cannot be had is known at once. Who connects
        # before the engine is ready waits in the socket's queue.
        listening = stack.enter_context(listen(settings))
        self.url = url_of(listening)
        folder = settings.state_folder
        database = None if folder is None else Database(folder)
        if database is not None:
            stack.callback(database.close)
            self.accounts.restore(*records.accounts(database))
        self.accounts.declare(self._declared)
        if not self.accounts.locked and others_reach(listening):
            raise NoKeys(settings.host)
        core = self._make_core(database)
        log = self._open_log(core)
        self._assemble(core, log, database)
        stack.callback(self._host.close)
        stack.callback(self._tool_worth.close)
        if settings.observe:
            self._host.post(ev.PolicyEngaged(engaged=False))
        if self._keeper is not None:
            stack.push_async_callback(self._keeper.close)
            if count := self._keeper.restore(self._host):
                _log.info("took up %d programs of an earlier daemon", count)
        stack.callback(self._gateway.close)
        await self._start_engines()
        app = self._gateway.application(
            self._operations, self._pages(), body_limit_bytes=settings.body_limit_bytes
        )
        # A handler is cancelled when its client goes away: that is how calls learn of it.
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0, logger=http_log()
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await self._listen(runner, listening)
        stack.push_async_callback(self._drain)
        if self._live is not None:
            stack.callback(self._live.close)
        sweeper = asyncio.create_task(self._sweep(), name="idle programs")
        stack.push_async_callback(_cancel, sweeper)

    async def _listen(self, runner: web.AppRunner, listening: socket.socket) -> None:
        await web.SockSite(runner, listening).start()

    async def _start_engines(self) -> None:
        """Returns once calls can be taken. Raises ``EngineGone``."""
        supervisor = Supervisor(self._make_engine, self._host, stall_s=self._settings.stall_s)
        self._stack.push_async_callback(self._stop_engine)
        self._supervision = asyncio.create_task(self._supervise(supervisor), name="engine supervisor")
        ready = asyncio.create_task(supervisor.ready.wait())
        await asyncio.wait([ready, self._supervision], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._supervision.done():
            self._supervision.result()

    def _pages(self) -> list[web.RouteDef]:
        """For people."""
        if self._live is None:
            return []
        log = self._settings.log
        return Pages(self._live, None if log is None else Recording(log)).routes()

    def _make_core(self, database: Database | None) -> Core:
        # An engine may outlive the daemon: it heeds the orders of the highest epoch that it has heard of.
        epoch = int(time.time()) if database is None else database.begin_epoch()
        core = Core(make_policy(self._settings.policy), epoch=epoch)
        self._epoch = epoch
        if database is not None and (known := records.models(database)) is not None:
            try:
                core.state.learn(known)
            except ValueError as error:
                _log.error("what was learned before is of another make, and begins anew: %s", error)
        return core

    def _open_log(self, core: Core) -> EventLog | None:
        settings = self._settings
        if settings.log is None:
            return None
        header = Header(
            agentsched=__version__,
            policy=settings.policy,
            epoch=self._epoch,
            started_unix_s=time.time(),
            run=self._run | {STARTED: time.monotonic()},
        )
        return EventLog(settings.log, header, core, Limits(settings.log_bytes, settings.log_files))

    def _assemble(self, core: Core, log: EventLog | None, database: Database | None) -> None:
        settings = self._settings
        self._programs = Programs()
        metrics = Metrics(self._programs)
        gate = Gate()
        meter = ChargesMeter(self.accounts.charges, self.accounts.slo_ttft_s)
        tenancies = Tenancies(self.accounts, self._make_identities)
        self._tool_worth = ToolWorth()
        watchers: list[Watcher] = [self._programs, metrics, meter, self._tool_worth]
        self._live: Live | None = None
        if settings.dashboard:
            self._live = Live(core, self._programs, settings.policy, logged=log is not None)
            watchers.append(self._live)
        watchers += self._watchers
        self._keeper: Keeper | None = None
        if database is not None:
            self._keeper = Keeper(database, core, self._programs, tenancies, self.accounts)
            watchers.append(self._keeper)
            metrics.watch_state(lambda: self.state_failing)
        self._host = host = Host(core, gate, watchers=watchers, log=log)
        metrics.watch_engines(
            lambda: {name: engine.capabilities.service.level for name, engine in host.engines.items()}
        )
        self._care = PrefixCare(settings.no_care)
        self._patience = Patience.of(settings)
        self._shared = SharedPrefixes(self._declared.shared_prefixes, self._frontend)
        self._calls = self._calls_kind(
            self._host,
            gate,
            self._programs,
            self._frontend,
            self._patience,
        )
        self._gateway = self._gateway_kind(
            self._calls,
            self._programs,
            Access(self.accounts, tenancies),
            self._shared,
            metrics,
            self._frontend,
            Delivery(self._patience, None if self._keeper is None else self._keeper.written),
            self._care,
            self.accounts,
        )
        self._operations = self._own(tenancies, metrics, meter)

    def _own(self, tenancies: Tenancies, metrics: Metrics, meter: ChargesMeter) -> list[Operation]:
        """The daemon's own endpoints."""
        calls, programs, accounts = self._calls, self._programs, self.accounts
        of_programs = ProgramsApi(calls, self._host, programs, accounts, meter)
        of_admins = AdminApi(accounts, tenancies, calls, programs, meter, of_programs)
        of_all = StatusApi(calls, self._host, metrics, lambda: document(self._operations))
        return [*of_all.operations(), *of_programs.operations(), *of_admins.operations()]

    async def _supervise(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
        except EngineGone as error:
            self._calls.fail_all(engine_gone(str(error), retry_after_s=60))
            raise

    async def _sweep(self) -> None:
        """Close programs that are not likely to be heard of again."""
        while True:
            settings = self._settings
            expiry = Expiry(floor_s=settings.idle_floor_s, ceiling_s=settings.idle_close_s)
            await asyncio.sleep(min(10.0, settings.idle_floor_s / 4, settings.idle_close_s / 4))
            for program in self._host.expired(expiry):
                _log.info("program %s is closed: it is silent for long", program)
                self._calls.close_program(program, expired=True)

    async def _drain(self) -> None:
        """Let calls that are nearly done end, and tell the others."""
        stopping = ApiError(
            503,
            "the daemon is shutting down",
            kind="server_error",
            code="shutting_down",
            retry_after_s=_SHUTDOWN_RETRY_S,
        )
        self._calls.unavailable = self._calls.unavailable or stopping
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                await self._calls.settle()
        self._calls.fail_all(stopping)
        await self._calls.settle()

    async def _stop_engine(self) -> None:
        assert self._supervision is not None
        self._supervision.cancel()
        with contextlib.suppress(asyncio.CancelledError, EngineGone):  # who waits for it was told
            await self._supervision


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
