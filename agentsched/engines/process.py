"""Engines as processes: the loop inside one, and the daemon's handle on it.

Daemon and engine share one end each of a socket pair that the engine inherits. Nothing lies on disk,
nobody else can connect, and each side learns of the other's death by the end of the stream:

* the daemon dies: the kernel kills the engine, also while it still loads its model; where it cannot,
  the engine ends within a step;
* the engine dies: every running call raises ``EngineGone`` with the last that the process printed.

The engine is in a session of its own, so that a Ctrl-C in the daemon's terminal lets the daemon end
it in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import assert_never

from agentsched.core.decisions import EngineOrder, EngineTerms
from agentsched.core.events import StepReport
from agentsched.engines import wire
from agentsched.engines.contract import (
    Capabilities,
    EngineGone,
    EngineOutput,
    GenerateRequest,
    RequestRefused,
    StepEngine,
)
from agentsched.engines.streams import CallItem, CallStreams, ReportFeed, renamed
from agentsched.engines.tied import tied
from agentsched.engines.wire import Frames, WireError, encode

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 18
_TAIL_BYTES = 4096


class ReportPace:
    """When a working engine's next report is due: more often when room runs out."""

    INTERVAL_S = 0.08
    SHORT_INTERVAL_S = 0.02
    LITTLE_ROOM = 0.05

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._floor_tokens = 0
        self._due_s = 0.0

    def ordered(self, orders: Sequence[EngineOrder]) -> None:
        """Take note of the free floor."""
        for order in orders:
            if isinstance(order, EngineTerms):
                self._floor_tokens = order.free_floor_tokens

    def due(self, now: float) -> bool:
        return now >= self._due_s

    def reported(self, report: StepReport, now: float) -> None:
        room = report.free_tokens + report.evictable_tokens
        little = room < max(self._floor_tokens, self.LITTLE_ROOM * self._capacity_tokens)
        self._due_s = now + (self.SHORT_INTERVAL_S if little else self.INTERVAL_S)


# Inside the engine's process


def host(engine: StepEngine, fd: int, *, pace: Callable[[float], None] | None = None) -> None:
    """Serve the daemon on the inherited socket ``fd`` until it closes or asks for the end.

    ``pace`` is called with the seconds of each step before its outputs are sent: ``time.sleep`` for an
    engine whose steps take no time of their own.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.set_inheritable(fd, False)
    # A model's libraries bring a million objects that live for good: no collection should walk them
    # again in the middle of a step.
    gc.freeze()
    with socket.socket(fileno=fd) as link:
        link.setblocking(True)
        try:
            _Host(engine, link, pace).run()
        except (BrokenPipeError, ConnectionResetError):
            _log.warning("the daemon is gone; so is this engine")


class _Host:
    def __init__(self, engine: StepEngine, link: socket.socket, pace: Callable[[float], None] | None) -> None:
        self._engine = engine
        self._link = link
        self._pace = pace
        self._frames = Frames()
        self._reports = ReportPace(engine.capabilities.capacity_tokens)

    def run(self) -> None:
        self._send(
            [wire.hello(self._engine.capabilities), self._engine.report(time.monotonic(), snapshot=True)]
        )
        while (messages := self._receive(wait=not self._engine.has_work)) is not None:
            for message in messages:
                if isinstance(message, wire.Close):
                    return
                self._take(message)
            if self._engine.has_work:
                self._step()

    def _step(self) -> None:
        seconds, outputs = self._engine.step(time.monotonic())
        if self._pace:
            self._pace(seconds)
        now = time.monotonic()
        if self._reports.due(now) or not self._engine.has_work:
            report = self._engine.report(now)
            self._reports.reported(report, now)
            outputs.append(report)
        if outputs:
            self._send(outputs)

    def _take(self, message: wire.Submit | wire.Abort | wire.Orders) -> None:
        now = time.monotonic()
        match message:
            case wire.Submit(request=request):
                try:
                    self._engine.submit(request, now)
                except RequestRefused as refusal:
                    self._send([wire.Refused(request.call, str(refusal))])
            case wire.Abort(call=call):
                self._engine.abort(call, now)
            case wire.Orders(orders=orders):
                self._engine.order(orders, now)
                self._reports.ordered(orders)
            case _:
                assert_never(message)

    def _receive(self, *, wait: bool) -> list[wire.ToEngine] | None:
        """What has come by now; None once the daemon is gone."""
        if not wait and not select.select([self._link], [], [], 0)[0]:
            return []
        data = self._link.recv(_READ_BYTES)
        return self._frames.for_engine(data) if data else None

    def _send(self, messages: Sequence[wire.Hello | wire.Refused | EngineOutput]) -> None:
        self._link.sendall(encode(messages))


# In the daemon


class EngineProcess:
    """An ``Engine`` in a process of its own.

    ``argv`` is run with ``--fd N`` appended and calls ``host`` with it. ``env`` is added to the
    daemon's environment; ``cpu_core`` confines the process to one core. After ``EngineGone`` it may be
    started again, as a new process that holds nothing.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cpu_core: int | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self._name = name
        self._argv = list(argv)
        self._env = dict(env or {})
        self._cpu_core = cpu_core
        self._start_timeout_s = start_timeout_s
        self._life: _Life | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self._alive().capabilities

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._alive().process.pid

    def _alive(self) -> _Life:
        if self._life is None:
            raise EngineGone(f"engine {self._name} is not started")
        return self._life

    async def start(self) -> None:
        """Raises ``EngineGone`` if the process cannot be run, ends, or is not ready in time."""
        await self.close()
        process, ours = await self._spawn()
        life = _Life(self._name, process)
        try:
            await life.begin(ours, self._start_timeout_s)
        except BaseException:
            await life.end()
            raise
        self._life = life

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, socket.socket]:
        if shutil.which(self._argv[0]) is None:
            raise EngineGone(f"engine {self._name} cannot be run: there is no program {self._argv[0]!r}")
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # The tie is to this thread, the event loop's, which lives as long as the daemon.
                process = await asyncio.create_subprocess_exec(
                    *tied([*self._argv, "--fd", str(theirs.fileno())], signal.SIGKILL),
                    env={**os.environ, **self._env},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise EngineGone(f"engine {self._name} cannot be run: {error}") from error
        if self._cpu_core is not None:
            try:
                # At once, and so before the program has started any thread.
                os.sched_setaffinity(process.pid, {self._cpu_core})
            except OSError as error:
                process.kill()
                await process.wait()
                ours.close()
                raise EngineGone(f"engine {self._name}: no core {self._cpu_core}: {error}") from error
        return process, ours

    def generate(self, request: GenerateRequest) -> AsyncIterator[CallItem]:
        life = self._alive()
        return life.calls.run(
            request,
            lambda request: life.send([wire.Submit(request)]),
            lambda call: life.send([wire.Abort(call)]),
        )

    async def order(self, orders: Sequence[EngineOrder]) -> None:
        await self._alive().order(orders)

    def reports(self) -> AsyncIterator[StepReport]:
        return self._alive().reports.read()

    async def close(self) -> None:
        life, self._life = self._life, None
        if life:
            await life.end()


class _Life:
    """One run of an engine's process, from ``begin`` to its end."""

    CLOSE_TIMEOUT_S = 5.0
    KILL_TIMEOUT_S = 2.0

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.calls = CallStreams()
        self.reports = ReportFeed()
        self._name = name
        self._hello: asyncio.Future[Capabilities] = asyncio.get_running_loop().create_future()
        self._gone: EngineGone | None = None
        self._tail = b""
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def capabilities(self) -> Capabilities:
        return self._hello.result()

    async def begin(self, link: socket.socket, timeout_s: float) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=link)
        printing = asyncio.create_task(self._keep_prints())
        self._tasks = [printing, asyncio.create_task(self._serve(reader, printing))]
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._hello)
        except TimeoutError:
            raise EngineGone(
                f"engine {self._name} was not ready after {timeout_s:g} s{self._last_words()}"
            ) from None

    async def order(self, orders: Sequence[EngineOrder]) -> None:
        self.send([wire.Orders(list(orders))])
        assert self._writer is not None
        try:
            await self._writer.drain()
        except ConnectionError as error:
            raise EngineGone(f"engine {self._name} does not take orders: {error}") from error

    def send(self, messages: Sequence[wire.ToEngine]) -> None:
        if self._gone:
            raise self._gone
        assert self._writer is not None
        self._writer.write(encode(messages))

    async def _serve(self, reader: asyncio.StreamReader, printing: asyncio.Task[None]) -> None:
        frames, fault = Frames(), ""
        try:
            while data := await reader.read(_READ_BYTES):
                for message in frames.for_daemon(data):
                    self._take(message)
        except ConnectionError as error:
            fault = f" ({error})"
        except WireError as error:
            fault = f": {error}"
        await self._reap(self.KILL_TIMEOUT_S)
        await asyncio.wait([printing], timeout=self.KILL_TIMEOUT_S)
        self._lost(EngineGone(f"engine {self._name} {self._how_ended()}{fault}{self._last_words()}"))

    def _take(self, message: wire.ToDaemon) -> None:
        match message:
            case wire.Hello():
                wire.check(message)
                if not self._hello.done():
                    self._hello.set_result(message.capabilities)
            case wire.Refused(call=call, reason=reason):
                self.calls.refuse(call, reason)
            case StepReport():
                self.reports.publish(renamed(message, self._name))
            case _:
                self.calls.put(message)

    def _lost(self, error: EngineGone) -> None:
        self._gone = error
        self.calls.fail(error)
        self.reports.end()
        if not self._hello.done():
            self._hello.set_exception(error)

    async def _keep_prints(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(_READ_BYTES):
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            _log.info("engine %s: %s", self._name, data.decode(errors="replace").rstrip())

    def _last_words(self) -> str:
        words = self._tail.decode(errors="replace").strip()
        return f"; it printed last:\n{words}" if words else "; it printed nothing"

    def _how_ended(self) -> str:
        status = self.process.returncode
        if status is None:
            return "closed its connection"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    async def _reap(self, patience_s: float) -> None:
        """Wait for the process's end; kill it when patience is over."""
        try:
            async with asyncio.timeout(patience_s):
                await self.process.wait()
        except TimeoutError:
            await self._kill()

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            self.process.kill()
        await self.process.wait()

    async def end(self) -> None:
        """Close in order if possible, by force if not; leaves no process and no task."""
        if self._gone is None and self._writer and self._hello.done():
            self.send([wire.Close()])
            await self._reap(self.CLOSE_TIMEOUT_S)
        else:
            await self._kill()
        if self._tasks:
            # The stream has ended with the process, so these end by themselves.
            await asyncio.wait(self._tasks, timeout=2 * self.KILL_TIMEOUT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer:
            self._writer.close()
        # Nobody may be waiting for the first word of a process that never spoke.
        if self._hello.done() and not self._hello.cancelled():
            self._hello.exception()
