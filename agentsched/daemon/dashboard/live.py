"""Feeds whoever watches now: the view model, kept up to date a few times a second, and what changed to each.

While nobody watches, an event costs one append to a ring of the latest ones, and nothing is computed. The
first who comes has the model made from that ring and from the core's own state.

A client that does not read as fast as it is told is cut off; it comes back and goes on where it was, as long
as that is remembered, or begins anew. So nobody makes the daemon hold more than ``REMEMBERED`` messages.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.core import Core
from agentsched.daemon.dashboard.model import Model
from agentsched.daemon.dashboard.rows import Delta, View
from agentsched.daemon.dashboard.scoping import delta_of, view_of
from agentsched.daemon.errors import ApiError
from agentsched.daemon.programs import Programs

_log = logging.getLogger(__name__)

RECENT = 20_000
"""Events of before the first who watches: some minutes, in about 10 MB."""

SLICE = 100
"""Events taken at once: about 3 ms."""

TICK_S = 0.25
LOOK_S = 1.0
LINGER_S = 30.0
"""After the last one went, the model is kept for so long: he may only have lost the connection."""

REMEMBERED = 240
MOST_UNREAD = 40
MOST_WATCHERS = 64


class Scope(NamedTuple):
    """What is shown: a tenant's own, with names as ``outside`` gives them, or, without one, everything."""

    tenant: str | None
    outside: Callable[[str], str]


class Client:
    """One who watches. ``cut`` ends its connection."""

    def __init__(self, cut: Callable[[], None]) -> None:
        self._unread: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._cut = cut

    def tell(self, message: bytes) -> None:
        if self._unread.qsize() >= MOST_UNREAD:
            self._cut()
        else:
            self._unread.put_nowait(message)

    def end(self) -> None:
        self._unread.put_nowait(None)

    async def next(self, within_s: float) -> bytes | None:
        """The next message; None: there are no more. Raises ``TimeoutError``."""
        async with asyncio.timeout(within_s):
            return await self._unread.get()


class _Channel:
    """All who see the same."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.clients: dict[Client, None] = {}
        self.sent: deque[tuple[int, bytes]] = deque(maxlen=REMEMBERED)
        self.left_s = 0.0

    def tell(self, name: str, number: int, delta: Delta) -> None:
        tenant, outside = self.scope
        mine = delta if tenant is None else delta_of(delta, tenant, outside)
        message = _message(f"{name}.{number}", "delta", msgspec.json.encode(mine))
        self.sent.append((number, message))
        for client in list(self.clients):
            client.tell(message)


class Live:
    """A watcher of the host's events; ``programs`` is one too, and watches before this."""

    def __init__(
        self,
        core: Core,
        programs: Programs,
        policy: str,
        *,
        logged: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._programs = programs
        self._policy = policy
        self._logged = logged
        self._clock = clock
        self._recent: deque[tuple[float, ev.AnyEvent, Sequence[de.AnyDecision]]] = deque(maxlen=RECENT)
        self._seen = 0
        self._model: Model | None = None
        self._name = ""
        self._taken = self._number = 0
        self._looked_s = self._told_s = self._wanted_s = float("-inf")
        self._channels: dict[str | None, _Channel] = {}
        self._making: asyncio.Task[Model] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def watched(self) -> bool:
        """Whether anything is computed."""
        return self._model is not None

    def observe(self, now: float, event: ev.AnyEvent, decided: Sequence[de.AnyDecision]) -> None:
        self._recent.append((now, event, decided))
        self._seen += 1

    async def view(self, scope: Scope) -> View:
        """Everything that this scope shows, as of now: to be encoded before anything else happens."""
        model = await self._wake()
        await self._tick(model)
        view = model.view(time.time(), logged=self._logged)
        return view if scope.tenant is None else view_of(view, scope.tenant, scope.outside)

    async def join(self, scope: Scope, last: str, cut: Callable[[], None]) -> Client:
        """One more who watches. ``last``: the id of the last message that it got, "" if it got none. Raises
        ``ApiError`` (429) if there are too many."""
        if self._closed or sum(len(channel.clients) for channel in self._channels.values()) >= MOST_WATCHERS:
            raise ApiError(
                429, f"{MOST_WATCHERS} watch already: close other dashboards", code="too_many_watchers"
            )
        view = await self.view(scope)  # tells all others what is new
        if self._model is None:
            raise ApiError(503, "nothing can be watched at the moment", retry_after_s=1.0)
        channel = self._channels.setdefault(scope.tenant, _Channel(scope))
        client = Client(cut)
        missed = self._missed(channel, last)
        if missed is None:
            missed = [_message(f"{self._name}.{self._number}", "view", msgspec.json.encode(view))]
        for message in missed:
            client.tell(message)
        channel.clients[client] = None
        return client

    def leave(self, client: Client) -> None:
        for channel in self._channels.values():
            if channel.clients.pop(client, client) is None:
                channel.left_s = self._clock()

    def close(self) -> None:
        """Nobody may watch any more."""
        self._closed = True
        self.rest()

    def rest(self) -> None:
        """Nobody watches at the moment."""
        for task in (self._making, self._ticking):
            if task is not None:
                task.cancel()
        self._making = None
        self._reset()

    def _reset(self) -> None:
        for channel in self._channels.values():
            for client in channel.clients:
                client.end()
        self._model = None
        self._channels.clear()

    def _missed(self, channel: _Channel, last: str) -> list[bytes] | None:
        """What was told since; None if that is not known any more."""
        name, _, number = last.partition(".")
        if name != self._name or not number.isdigit() or int(number) > self._number:
            return None
        missed = [(told, message) for told, message in channel.sent if told > int(number)]
        if len(missed) != self._number - int(number) or len(missed) >= MOST_UNREAD:
            return None
        return [message for _, message in missed]

    # The model

    async def _wake(self) -> Model:
        self._wanted_s = self._clock()
        if self._model is None:
            if self._making is None:
                self._making = asyncio.create_task(self._make(), name="dashboard's beginning")
            return await asyncio.shield(self._making)
        return self._model

    async def _make(self) -> Model:
        try:
            model = Model(self._policy)
            self._taken = self._seen - len(self._recent)
            await self._catch_up(model)
            self._settle(model)
            model.delta()  # the view has it
        finally:
            self._making = None
        self._name, self._number = secrets.token_hex(4), 0
        self._model = model
        self._ticking = asyncio.create_task(self._run(model), name="dashboard")
        return model

    async def _catch_up(self, model: Model) -> None:
        """Take what happened, a slice at a time: calls come first. What happens meanwhile is taken at once,
        so that this comes to an end. Returns as soon as all is taken."""
        for _ in range((self._seen - self._taken) // SLICE):
            self._take(model, SLICE)
            await asyncio.sleep(0)
        self._take(model, self._seen - self._taken)

    def _take(self, model: Model, many: int) -> None:
        here = len(self._recent) - (self._seen - self._taken)
        if here < 0:
            self._taken = self._seen
            self._settle(model)  # more happened than is remembered
            return
        for happened in islice(self._recent, here, here + many):
            model.apply(*happened)
        self._taken = min(self._seen, self._taken + many)

    def _settle(self, model: Model) -> None:
        now = self._clock()
        on_host = {name: view.held_host_tokens for name, view in self._programs.open.items()}
        model.settle(now, self._core.state, on_host)
        model.look(now, self._core, first=True)
        self._looked_s = now

    async def _run(self, model: Model) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if any(channel.clients for channel in self._channels.values()):
                self._wanted_s = self._clock()
            elif self._clock() >= self._wanted_s + LINGER_S:
                break
            try:
                await self._tick(model)
            except Exception:
                _log.exception("the dashboard's model failed; who watches begins anew")
                break
        self._reset()

    async def _tick(self, model: Model) -> None:
        """Take what happened, and tell it."""
        await self._catch_up(model)
        now = self._clock()
        if now >= self._looked_s + LOOK_S:
            self._looked_s = now
            model.look(now, self._core)
        if not model.changed and now < self._told_s + LOOK_S:
            return
        self._told_s = now
        self._number += 1
        delta = model.delta()
        for tenant, channel in list(self._channels.items()):
            if not channel.clients and now >= channel.left_s + LINGER_S:
                del self._channels[tenant]
            else:
                channel.tell(self._name, self._number, delta)


def _message(number: str, event: str, data: bytes) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (number.encode(), event.encode(), data)
