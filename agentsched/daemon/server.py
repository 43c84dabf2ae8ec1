"""The daemon put together: core, gate, calls, gateway and one supervised engine on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from aiohttp import web

from agentsched import __version__
from agentsched.core import Core, make_policy
from agentsched.core.log import Header
from agentsched.daemon.calls import Calls
from agentsched.daemon.care import PrefixCare
from agentsched.daemon.delivery import Delivery
from agentsched.daemon.errors import ApiError, engine_gone
from agentsched.daemon.eventlog import EventLog
from agentsched.daemon.gate import Gate
from agentsched.daemon.gateway import Gateway
from agentsched.daemon.host import Host
from agentsched.daemon.httplog import http_log
from agentsched.daemon.identity import Identities
from agentsched.daemon.metrics import Metrics
from agentsched.daemon.programs import Programs
from agentsched.daemon.supervisor import Supervisor
from agentsched.engines.contract import Engine, EngineGone
from agentsched.engines.frontend import Frontend

_log = logging.getLogger(__name__)

_EPOCH = 1  # engines live and die with their daemon, so no orders of an earlier one can be around
_SHUTDOWN_RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve. ``port`` 0 takes a free one. ``run`` goes into the event log's header."""

    policy: str = "agentsched"
    host: str = "127.0.0.1"
    port: int = 0
    log: Path | None = None
    max_hold_s: float = 600.0
    idle_close_s: float = 900.0
    ping_s: float = 5.0
    silence_s: float = 30.0
    retry_grace_s: float = 2.0
    drain_s: float = 3.0
    no_care: frozenset[str] = frozenset()
    body_limit_bytes: int = 64 * 1024 * 1024
    run: Mapping[str, str | int | float] = field(default_factory=dict)


class Daemon:
    """One gateway. ``async with`` starts it and stops it in order; ``wait`` says when it cannot go on.

    ``make_engine`` is called for each life of the engine; ``identities`` says whose a call is. Entering
    raises ``OSError`` if the address or the log cannot be used, ``ValueError`` for an unknown policy, and
    ``EngineGone`` if the engine does not start.
    """

    _calls_kind: type[Calls] = Calls
    _gateway_kind: type[Gateway] = Gateway

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        frontend: Frontend,
        settings: Settings,
        identities: Identities | None = None,
    ) -> None:
        self._settings = settings
        self._make_engine = make_engine
        self._frontend = frontend
        self._identities = identities or Identities()
        self._stack = contextlib.AsyncExitStack()
        self._supervision: asyncio.Task[None] | None = None
        self.url = ""

    @property
    def engines(self) -> dict[str, Engine]:
        """The attached engines by name."""
        return self._host.engines

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

    async def wait(self) -> None:
        """Raises ``EngineGone`` once the engine has failed too often; else waits for ever."""
        assert self._supervision is not None
        await asyncio.shield(self._supervision)

    async def _start(self) -> None:
        settings, stack = self._settings, self._stack
        core = Core(make_policy(settings.policy), epoch=_EPOCH)
        # Before anything slow, so that a port or a log that cannot be had is known at once. Who connects
        # before the engine is ready waits in the socket's queue.
        listening = stack.enter_context(_listen(settings.host, settings.port))
        self.url = _url(listening)
        log = self._open_log()
        self._assemble(core, log)
        stack.callback(self._host.close)
        stack.callback(self._gateway.close)
        await self._start_engines()
        app = self._gateway.application(body_limit_bytes=settings.body_limit_bytes)
        # A handler is cancelled when its client goes away: that is how calls learn of it.
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0, logger=http_log()
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, listening).start()
        stack.push_async_callback(self._drain)
        sweeper = asyncio.create_task(self._sweep(), name="idle programs")
        stack.push_async_callback(_cancel, sweeper)

    async def _start_engines(self) -> None:
        """Returns once calls can be taken. Raises ``EngineGone``."""
        supervisor = Supervisor(self._make_engine, self._host)
        self._stack.push_async_callback(self._stop_engine)
        self._supervision = asyncio.create_task(self._supervise(supervisor), name="engine supervisor")
        ready = asyncio.create_task(supervisor.ready.wait())
        await asyncio.wait([ready, self._supervision], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._supervision.done():
            self._supervision.result()

    def _open_log(self) -> EventLog | None:
        settings = self._settings
        if settings.log is None:
            return None
        header = Header(
            agentsched=__version__,
            policy=settings.policy,
            epoch=_EPOCH,
            started_unix_s=time.time(),
            run=dict(settings.run),
        )
        return EventLog(settings.log, header)

    def _assemble(self, core: Core, log: EventLog | None) -> None:
        settings = self._settings
        self._programs = Programs()
        metrics = Metrics(self._programs)
        gate = Gate()
        self._host = Host(core, gate, watchers=[self._programs, metrics], log=log)
        identities = self._identities
        care = PrefixCare(settings.no_care)
        self._calls = self._calls_kind(
            self._host,
            gate,
            self._programs,
            identities,
            self._frontend,
            care,
            max_hold_s=settings.max_hold_s,
            retry_grace_s=settings.retry_grace_s,
        )
        self._gateway = self._gateway_kind(
            self._calls,
            self._host,
            self._programs,
            identities,
            metrics,
            self._frontend,
            Delivery(ping_s=settings.ping_s, silence_s=settings.silence_s),
            care,
        )

    async def _supervise(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
        except EngineGone as error:
            self._calls.fail_all(engine_gone(str(error), retry_after_s=60))
            raise

    async def _sweep(self) -> None:
        """Close programs that nobody has been heard of for long."""
        limit_s = self._settings.idle_close_s
        while True:
            await asyncio.sleep(min(10.0, limit_s / 4))
            for program in self._programs.idle(time.monotonic(), limit_s):
                _log.info("program %s is closed: idle for %g s", program, limit_s)
                self._calls.close_program(program)

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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
