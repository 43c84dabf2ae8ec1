"""Keeps one engine running: starts it, feeds its reports to the host, and restarts it when it dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agentsched.daemon.host import Host
from agentsched.engines.contract import Engine, EngineGone

_log = logging.getLogger(__name__)

MOST_PAUSE_S = 3.2


class Supervisor:
    """``make`` gives a new engine each time, so that nothing of a dead one is taken for the next.

    An engine that ends within ``fast_s`` of being ready is a fast failure. After ``max_fast`` of them
    in a row (None: never), or if the first one does not start at all, ``run`` gives up. An engine that has
    calls and says nothing for ``stall_s`` is taken for hung, and ended (None: it watches itself).
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        host: Host,
        *,
        fast_s: float = 10.0,
        max_fast: int | None = 4,
        stall_s: float | None = None,
    ) -> None:
        self.ready = asyncio.Event()
        self._make = make
        self._host = host
        self._fast_s = fast_s
        self._max_fast = max_fast
        self._stall_s = stall_s

    async def run(self) -> None:
        """Until cancelled; the engine is closed then. Raises ``EngineGone`` on giving up."""
        fast = 0
        while True:
            lived_s, error = await self._one_life()
            if lived_s is None and not self.ready.is_set():
                raise error
            fast = fast + 1 if lived_s is None or lived_s < self._fast_s else 1
            if self._max_fast is not None and fast >= self._max_fast:
                raise EngineGone(f"the engine failed {fast} times in a row, the last time: {error}")
            pause_s = min(MOST_PAUSE_S, 0.1 * 2 ** min(fast, 8))
            _log.error("%s; starting it again in %.1f s", error, pause_s)
            await asyncio.sleep(pause_s)

    async def _one_life(self) -> tuple[float | None, EngineGone]:
        """How long it lived after being ready (None: never was), and what ended it."""
        loop = asyncio.get_running_loop()
        engine = self._make()
        began_s = None
        try:
            await engine.start()
            began_s = loop.time()
            self._host.attach(engine)
            self.ready.set()
            await self._pass_reports(engine)
            await engine.order([])  # reports just end; this tells why
            error = EngineGone(f"engine {engine.name} stopped reporting")
        except EngineGone as gone:
            error = gone
        finally:
            self._host.lost(engine)
            await engine.close()
        return (None if began_s is None else loop.time() - began_s), error

    async def _pass_reports(self, engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(self._stall_s) as limit:
                    async for report in engine.reports():
                        if self._stall_s is not None:
                            limit.reschedule(loop.time() + self._stall_s)
                        self._host.post(report)
                    return
            except TimeoutError:
                if self._host.serving(engine.name):
                    raise EngineGone(
                        f"engine {engine.name} has calls, and was silent for {self._stall_s:g} s"
                    ) from None
