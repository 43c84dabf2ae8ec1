"""The real-time host of the scheduling core: one funnel for all events, and its clock.

``post`` is the only way in. It runs on the event loop, never waits, and does in order: hand the event
to the core, write the log, show watchers what happened, carry the decisions out. Carrying out only
resolves futures and fills queues; should it lead to another event, that one waits its turn.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.core import Core
from agentsched.core.expiry import Expiry
from agentsched.core.state import IllegalEvent, Phase
from agentsched.daemon.eventlog import EventLog
from agentsched.daemon.gate import Gate
from agentsched.engines.contract import Engine, EngineGone

_log = logging.getLogger(__name__)
_MIN_SLEEP_S = 0.001


class Watcher(Protocol):
    """Sees every event that the core took, after it, with its decisions. Must not raise."""

    def observe(self, now: float, event: ev.AnyEvent, decided: Sequence[de.AnyDecision]) -> None: ...


class Host:
    """Drives one core on the running event loop."""

    def __init__(
        self,
        core: Core,
        gate: Gate,
        *,
        watchers: Sequence[Watcher] = (),
        log: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._gate = gate
        self._observe = [watcher.observe for watcher in watchers]
        self._event_log = log
        self._clock = clock
        self._engines: dict[str, _Link] = {}
        self._pending: deque[ev.AnyEvent] = deque()
        self._posting = False
        self._alarm: asyncio.TimerHandle | None = None
        self._due_s: float | None = None

    @property
    def engines(self) -> dict[str, Engine]:
        """The attached engines by name."""
        return {name: link.engine for name, link in self._engines.items()}

    @property
    def engaged(self) -> bool:
        """Whether what is decided is carried out; else the policy only watches."""
        return self._core.engaged

    def engine(self, name: str | None) -> Engine | None:
        """The attached engine of that name, if there is one."""
        link = self._engines.get(name) if name is not None else None
        return None if link is None else link.engine

    def post(self, event: ev.AnyEvent) -> bool:
        """Handle one event; False if the core says that it cannot be (nothing has changed then).

        An event posted while another is being handled comes after it, and answers True.
        """
        if self._posting:
            self._pending.append(event)
            return True
        self._posting = True
        try:
            taken = self._handle(event)
            while self._pending:
                self._handle(self._pending.popleft())
        finally:
            self._posting = False
        self._set_alarm()
        return taken

    def attach(self, engine: Engine) -> None:
        """An engine is ready for calls."""
        self._engines[engine.name] = _Link(engine)
        can = engine.capabilities
        self.post(
            ev.EngineAttached(
                engine=engine.name,
                capacity_tokens=can.capacity_tokens,
                block_tokens=can.block_tokens,
                host_capacity_tokens=can.host_capacity_tokens,
                host_tokens_per_s=can.host_tokens_per_s,
                max_running=can.max_running,
                retention=can.retention,
            )
        )

    def serving(self, engine: str) -> bool:
        """Whether calls are in the engine, as far as the core knows."""
        state = self._core.state
        return any(
            call.phase is not Phase.WAITING and state.programs[call.program].home == engine
            for call in state.calls.values()
        )

    def lost(self, engine: Engine) -> None:
        """An engine is gone. May be called by everyone who notices."""
        link = self._engines.get(engine.name)
        if link is not None and link.engine is engine:
            del self._engines[engine.name]
            link.close()
            self._gate.lost(engine.name)
            self.post(ev.EngineLost(engine=engine.name))

    def expired(self, expiry: Expiry) -> list[str]:
        """Programs that are taken to have ended without a word, by now."""
        return self._core.expired(self._clock(), expiry)

    def close(self) -> None:
        """Stop the clock and the senders, and end the log."""
        if self._alarm is not None:
            self._alarm.cancel()
        for link in self._engines.values():
            link.close()
        if self._event_log is not None:
            self._event_log.close()

    def _handle(self, event: ev.AnyEvent) -> bool:
        """False if it cannot be."""
        now = self._clock()
        try:
            decided = self._core.handle(now, event)
        except IllegalEvent as error:
            _log.info("ignored: %s", error)
            return False
        except Exception:
            if self._event_log is not None:  # the event that broke the core is the last one of the log
                self._event_log.write(now, event, [])
            raise
        if self._event_log is not None:
            self._event_log.write(now, event, decided)
            self._event_log.go_on(self._core)
        for observe in self._observe:
            observe(now, event, decided)
        if decided:
            # What engines are told comes before the calls that it is about.
            for decision in sorted(decided, key=lambda decision: isinstance(decision, de.GateOrder)):
                self._carry_out(decision)
        return True

    def _carry_out(self, decision: de.AnyDecision) -> None:
        if decision.advice:
            return
        if isinstance(decision, de.GateOrder):
            self._gate.carry_out(decision)
        elif (link := self._engines.get(decision.engine)) is not None:
            link.send(decision)

    def _set_alarm(self) -> None:
        due = self._core.next_wakeup()
        if due == self._due_s:
            return
        self._due_s = due
        if self._alarm is not None:
            self._alarm.cancel()
        delay = None if due is None else max(_MIN_SLEEP_S, due - self._clock())
        loop = asyncio.get_running_loop()
        self._alarm = None if delay is None else loop.call_later(delay, self._wake)

    def _wake(self) -> None:
        self._due_s = None
        self.post(ev.Woken())


class _Link:
    """Sends orders to one engine, in order, in batches, without making the host wait."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._orders: list[de.EngineOrder] = []
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    def send(self, order: de.EngineOrder) -> None:
        self._orders.append(order)
        if self._sender is None and not self._closed:
            self._sender = asyncio.create_task(self._send(), name=f"orders to {self.engine.name}")

    def close(self) -> None:
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()

    async def _send(self) -> None:
        try:
            while self._orders:
                batch, self._orders = self._orders, []
                await self.engine.order(batch)
        except EngineGone as error:
            # Its supervisor sees the same and reports the loss; a new engine gets new orders.
            _log.info("orders did not reach %s: %s", self.engine.name, error)
            self._closed = True
        finally:
            self._sender = None
