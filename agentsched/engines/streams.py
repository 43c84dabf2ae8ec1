"""The daemon's side of an engine's outputs: one stream a call, one feed of reports.

Shared by every ``Engine`` that receives the outputs of all calls mixed. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import msgspec

from agentsched.core.events import CallAborted, CallFinished, CallStarted, FirstToken, Held, StepReport
from agentsched.engines.contract import EngineGone, GenerateRequest, RequestRefused, TokensOut

CallItem = TokensOut | CallStarted | FirstToken | CallFinished | CallAborted


class CallStreams:
    """The calls that run in one engine; what the engine says of a call reaches whoever runs it."""

    def __init__(self) -> None:
        self._open: dict[str, asyncio.Queue[CallItem | RequestRefused | EngineGone]] = {}
        # Closed early, and not ended in the engine yet: a late end must not reach a call of the same id.
        self._ending: dict[str, None] = {}
        self._gone: EngineGone | None = None

    async def run(
        self,
        request: GenerateRequest,
        submit: Callable[[GenerateRequest], None],
        abort: Callable[[str], None],
    ) -> AsyncGenerator[CallItem, None]:
        """The items of one call, from its submission to its end. Closing it early calls ``abort``.

        Raises ``RequestRefused`` before the first item, ``EngineGone`` at any time.
        """
        call = request.call
        if self._gone:
            raise self._gone
        if call in self._open or call in self._ending:
            raise RequestRefused(f"call {call!r} is in use already")
        submit(request)
        queue = self._open[call] = asyncio.Queue()
        ended = False
        try:
            while not ended:
                item = await queue.get()
                ended = not isinstance(item, TokensOut | CallStarted | FirstToken)
                if isinstance(item, RequestRefused | EngineGone):
                    raise item
                yield item
        finally:
            del self._open[call]
            if not ended and self._gone is None:
                self._ending[call] = None
                abort(call)

    def put(self, item: CallItem) -> None:
        """The engine said this. Items of calls that were closed early are dropped."""
        queue = self._open.get(item.call)
        if queue:
            queue.put_nowait(item)
        elif isinstance(item, CallFinished | CallAborted):
            self._ending.pop(item.call, None)

    def refuse(self, call: str, reason: str) -> None:
        """The engine refused the call."""
        self._ending.pop(call, None)
        if call in self._open:
            self._open[call].put_nowait(RequestRefused(reason))

    def fail(self, error: EngineGone) -> None:
        """The engine is gone: every call raises ``error``, now and later."""
        self._gone = error
        for queue in self._open.values():
            queue.put_nowait(error)


class ReportFeed:
    """Step reports for any number of readers, each of which begins with a snapshot."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._last: StepReport | None = None
        self._readers: list[asyncio.Queue[StepReport | None]] = []
        self._ended = False

    def publish(self, report: StepReport) -> None:
        if report.snapshot:
            self._held.clear()
        for held in report.held:
            if held.device_tokens or held.host_tokens:
                self._held[held.program] = held
            else:
                self._held.pop(held.program, None)
        self._last = report
        for reader in self._readers:
            reader.put_nowait(report)

    def end(self) -> None:
        """The engine is gone."""
        self._ended = True
        for reader in self._readers:
            reader.put_nowait(None)

    async def read(self) -> AsyncIterator[StepReport]:
        """All that is held by now as a snapshot, then every report; ends with the engine."""
        reader: asyncio.Queue[StepReport | None] = asyncio.Queue()
        if self._last:
            reader.put_nowait(self._snapshot(self._last))
        if self._ended:
            return
        self._readers.append(reader)
        try:
            while report := await reader.get():
                yield report
        finally:
            self._readers.remove(reader)

    def _snapshot(self, last: StepReport) -> StepReport:
        # The amounts of the last report went to those who read then; a snapshot says what is held.
        if last.snapshot:
            return last
        return StepReport(
            engine=last.engine,
            free_tokens=last.free_tokens,
            evictable_tokens=last.evictable_tokens,
            held=tuple(self._held.values()),
            snapshot=True,
            running=last.running,
            queued=last.queued,
        )


def renamed(report: StepReport, engine: str) -> StepReport:
    """The report under the name that the daemon gave the engine."""
    return report if report.engine == engine else msgspec.structs.replace(report, engine=engine)
