"""The daemon in front of servers that are there already: ``Daemon``, but that calls are passed on to
them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from functools import partial

from aiohttp import web

from agentsched.core import Core
from agentsched.daemon.accounts import Declared
from agentsched.daemon.errors import ApiError
from agentsched.daemon.eventlog import EventLog
from agentsched.daemon.gateway import failure_body
from agentsched.daemon.host import Watcher
from agentsched.daemon.listening import BACKLOG
from agentsched.daemon.server import Daemon
from agentsched.daemon.settings import Settings
from agentsched.daemon.state import Database
from agentsched.daemon.supervisor import Supervisor
from agentsched.daemon.upstream.calls import PassedCalls
from agentsched.daemon.upstream.delivery import PassDelivery
from agentsched.daemon.upstream.fast_path import FastPath
from agentsched.daemon.upstream.gateway import PassGateway
from agentsched.engines.contract import EngineGone, RequestRefused
from agentsched.engines.frontend import ChatRequest, OutputDecoder, Prepared
from agentsched.engines.upstream.engine import UpstreamEngine, UpstreamSettings


class UpstreamDaemon(Daemon):
    """See ``Daemon``. Serves at once, whether the servers are there or not: calls wait for them.

    ``api_key`` is sent to the servers in place of what clients send. Raises ``ValueError`` for no URL, one
    that is none, or two that name the same server.
    """

    _calls_kind = PassedCalls
    _gateway_kind = PassGateway

    def __init__(
        self,
        upstreams: Sequence[UpstreamSettings],
        settings: Settings,
        *,
        api_key: str | None = None,
        declared: Declared | None = None,
        run: Mapping[str, str | int | float] | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        engines = [partial(UpstreamEngine, upstream) for upstream in upstreams]
        if not engines:
            raise ValueError("no upstream server is named")
        super().__init__(
            engines[0], ElsewhereFrontend(), settings, declared=declared, run=run, watchers=watchers
        )
        self._make_engines = engines
        self._api_key = api_key

    def _assemble(self, core: Core, log: EventLog | None, database: Database | None) -> None:
        super()._assemble(core, log, database)
        assert isinstance(self._gateway, PassGateway)
        kept = None if self._keeper is None else self._keeper.written
        self._gateway.passing(PassDelivery(self._patience, kept), api_key=self._api_key)

    async def _listen(self, runner: web.AppRunner, listening: socket.socket) -> None:
        gateway, full_server = self._gateway, runner.server
        assert isinstance(gateway, PassGateway)
        assert full_server is not None
        path = FastPath(
            gateway.answer,
            gateway.failure,
            full_server,
            body_limit_bytes=self._settings.body_limit_bytes,
            too_slow=failure_body(ApiError(408, "the request took too long to come"), "", {}),
        )
        self._stack.push_async_callback(path.close)
        await path.listen(sock=listening, backlog=BACKLOG)

    async def _start_engines(self) -> None:
        # Such an engine says nothing while one call takes long; it polls its server instead.
        supervisors = [Supervisor(make, self._host, max_fast=None) for make in self._make_engines]
        self._stack.push_async_callback(self._stop_engine)
        self._supervision = asyncio.create_task(self._supervise_all(supervisors), name="engine supervisors")

    async def _supervise_all(self, supervisors: Sequence[Supervisor]) -> None:
        """One that gives up (it cannot be told what the server has room for) ends the daemon."""
        try:
            async with asyncio.TaskGroup() as group:
                for supervisor in supervisors:
                    group.create_task(self._supervise(supervisor))
        except* EngineGone as errors:
            raise errors.exceptions[0] from None


class ElsewhereFrontend:
    """The ``Frontend`` of servers that render and tokenize by themselves: the daemon cannot do it for
    them."""

    def models(self) -> list[str]:
        return []

    def prepare(self, request: ChatRequest) -> Prepared:
        raise RequestRefused("model: this prompt is tokenized by the server that computes it")

    def decoder(self, prepared: Prepared) -> OutputDecoder:
        raise RequestRefused("model: this answer is made by the server that computes it")
