"""An engine inside the daemon's own event loop: for tests and for demonstrations in virtual time.

Its steps block the loop, so a real model belongs into a process (``process.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import StepReport
from agentsched.engines.contract import Capabilities, EngineGone, EngineOutput, GenerateRequest, StepEngine
from agentsched.engines.process import ReportPace
from agentsched.engines.streams import CallItem, CallStreams, ReportFeed, renamed

_log = logging.getLogger(__name__)


class InProcessEngine:
    """An ``Engine`` over a ``StepEngine``. In virtual time a step takes no time and the clock, which
    starts at 0, advances by what it would have taken; otherwise the loop sleeps for as long."""

    def __init__(self, engine: StepEngine, *, name: str = "in-process", virtual_time: bool = True) -> None:
        self._engine = engine
        self._name = name
        self._virtual_time = virtual_time
        self._now = 0.0
        self._calls = CallStreams()
        self._reports = ReportFeed()
        self._pace = ReportPace(engine.capabilities.capacity_tokens)
        self._wake = asyncio.Event()
        self._gone: EngineGone | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    async def start(self) -> None:
        if self._task is None:
            self._report(snapshot=True)
            self._task = asyncio.create_task(self._run())

    def generate(self, request: GenerateRequest) -> AsyncIterator[CallItem]:
        self._check_alive()
        return self._calls.run(request, self._submit, self._abort)

    def _submit(self, request: GenerateRequest) -> None:
        self._engine.submit(request, self._clock())
        self._wake.set()

    def _abort(self, call: str) -> None:
        self._engine.abort(call, self._clock())
        self._wake.set()

    async def order(self, orders: Sequence[EngineOrder]) -> None:
        self._check_alive()
        self._pace.ordered(orders)
        self._engine.order(orders, self._clock())
        if self._engine.has_work:  # KV may have to come up from host memory
            self._wake.set()

    def reports(self) -> AsyncIterator[StepReport]:
        return self._reports.read()

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        self._lose(EngineGone(f"engine {self._name} is closed"))

    def _check_alive(self) -> None:
        if self._gone:
            raise self._gone
        if self._task is None:
            raise EngineGone(f"engine {self._name} is not started")

    def _clock(self) -> float:
        return self._now if self._virtual_time else time.monotonic()

    async def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                if not self._engine.has_work:
                    await self._wake.wait()
                await self._step()
        except Exception as error:
            _log.exception("engine %s broke", self._name)
            self._lose(EngineGone(f"engine {self._name} broke: {type(error).__name__}: {error}"))

    async def _step(self) -> None:
        seconds, outputs = self._engine.step(self._clock())
        self._now += seconds
        await asyncio.sleep(0 if self._virtual_time else seconds)
        for output in outputs:
            self._put(output)
        if self._pace.due(self._clock()) or not self._engine.has_work:
            self._report()

    def _put(self, output: EngineOutput) -> None:
        if isinstance(output, StepReport):
            self._reports.publish(renamed(output, self._name))
        else:
            self._calls.put(output)

    def _report(self, *, snapshot: bool = False) -> None:
        report = self._engine.report(self._clock(), snapshot=snapshot)
        self._pace.reported(report, self._clock())
        self._put(report)

    def _lose(self, error: EngineGone) -> None:
        self._gone = error
        self._calls.fail(error)
        self._reports.end()
