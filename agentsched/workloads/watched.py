"""A dashboard over a simulated run: the daemon's own page and model, with nothing but a simulation behind it.

Virtual time goes on with real time, ``speed`` times as fast. For looking at the page, and for measuring it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.core.decisions import AnyDecision
from agentsched.core.log import Entry
from agentsched.daemon.access import VIEWER, Viewer
from agentsched.daemon.dashboard.live import Live, Scope
from agentsched.daemon.dashboard.pages import Pages
from agentsched.daemon.gateway import errors_told
from agentsched.daemon.programs import Programs
from agentsched.workloads.simulate import Options, play

STEP_S = 0.02


class Watched:
    """The run. ``url`` is where its page is, once served."""

    def __init__(self, options: Options, policy: str = "agentsched", *, speed: float = 1.0) -> None:
        self.core = Core(make_policy(policy))
        self.speed = speed
        self.programs_events = 0
        self.url = ""
        self._programs = Programs()
        self.live = Live(self.core, self._programs, policy, clock=self.now)
        self._began_s: float | None = None
        self._before_s = 0.0
        self._simulation = play(options, self, _drop)  # type: ignore[arg-type]  # it stands before the core

    everything = Scope(None, str)

    def now(self) -> float:
        """Virtual seconds."""
        if self._began_s is None:
            return self._before_s
        return self._before_s + self.speed * (time.monotonic() - self._began_s)

    def go(self, speed: float) -> None:
        """From now on so many times as fast."""
        now = self.now()
        if self._began_s is not None:
            self._before_s, self._began_s = now, time.monotonic()
        self.speed = speed

    def handle(self, now: float, event: ev.AnyEvent) -> list[AnyDecision]:
        decided = self.core.handle(now, event)
        self.programs_events += not isinstance(event, ev.StepReport | ev.Woken)
        self._programs.observe(now, event, decided)
        self.live.observe(now, event, decided)
        return decided

    def next_wakeup(self) -> float | None:
        return self.core.next_wakeup()

    def check_invariants(self) -> None:
        self.core.check_invariants()

    def run_to(self, at_s: float) -> None:
        """Without waiting, before it is served."""
        self._simulation.run(until_s=at_s)
        self._before_s = at_s

    async def run(self) -> None:
        """On and on, with the clock."""
        self._began_s = time.monotonic()
        while True:
            await asyncio.sleep(STEP_S)
            self._simulation.run(until_s=self.now())

    @asynccontextmanager
    async def served(self, *, still: bool = False) -> AsyncIterator[str]:
        """The page's URL. ``still``: time does not go on."""
        app = web.Application(middlewares=[errors_told, _all_seeing])
        app.add_routes(Pages(self.live, None).routes())
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/dashboard"
        running = None if still else asyncio.create_task(self.run())
        try:
            yield self.url
        finally:
            if running is not None:
                running.cancel()
                self._before_s, self._began_s = self.now(), None
            self.live.rest()
            await runner.cleanup()


@web.middleware
async def _all_seeing(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    request[VIEWER] = Viewer(None)
    return await handler(request)


def _drop(entry: Entry) -> None:
    """The log is nobody's."""
