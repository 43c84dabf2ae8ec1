"""The controller process: hears of calls, looks at their hosts, and carries out what the core decides.

One thread and one wait: for runtimes, for what sources notice, and for the time of the next look. It is
started by the first runtime that needs it (``client``), outlives that, and ends when no runtime has been
connected for ``LINGER_S``.
"""

from __future__ import annotations

import logging
import math
import os
import select
import socket
import time
from dataclasses import dataclass, field

import msgspec

from agentsched.cgroups.control import messages as ms
from agentsched.cgroups.control.hands import RENEW_S, Hands, Place
from agentsched.cgroups.control.hosts import HostView, host_of
from agentsched.cgroups.control.sources import Source
from agentsched.core import tool_control as tc
from agentsched.graphs.predict import MemoryModel

_log = logging.getLogger("agentsched.control")

LINGER_S = 30.0
MOST_PROGRAMS = 4096
"""Whose worth is known at the same time."""

LEAST_PAUSE_S = 0.01
"""Between two looks. On v2 each call at its cap tells of that up to a hundred times a second."""

FIRST_S = 5.0
"""So much longer at first: whoever started it is to connect."""


@dataclass
class _Client:
    """A runtime that is connected."""

    connection: socket.socket
    leaves: dict[str, None] = field(default_factory=dict)


@dataclass
class _Call:
    place: Place
    program: str
    pool: _Pool
    client: _Client
    done: ms.Done
    touched: bool = False

    def __post_init__(self) -> None:
        self.knobs = self.place.knobs()

    def seen(self) -> tc.Seen:
        """What it holds now."""
        return tc.Seen(memory_bytes=self.knobs.memory_now(), stopped=self.knobs.stopped())


@dataclass
class _Pool:
    """One host: the machine, or what is under a limited folder."""

    view: HostView
    control: tc.ToolControl
    trees: dict[str, Place] = field(default_factory=dict)
    """Folders above its leaves whose growth is watched, each with one of its calls."""
    watched: dict[str, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    """CPU weights of folders, where they are not the usual."""
    programs: dict[str, int] = field(default_factory=dict)
    """CPU weights of programs."""
    looked_s: float = -math.inf


class Server:
    """``listener``: a bound socket; it is closed with the server."""

    def __init__(
        self, listener: socket.socket, hands: Hands, sources: list[Source], terms: tc.Terms | None = None
    ) -> None:
        self._listener = listener
        self._hands = hands
        self._sources = sources
        self._terms = terms or tc.Terms()
        self._memory = MemoryModel()
        self._pools: dict[str, _Pool] = {}
        self._calls: dict[str, _Call] = {}
        self._clients: dict[int, _Client] = {}
        self._worths: dict[str, tc.Worth] = {}
        self._epoll = select.epoll()
        self._renew_s = time.monotonic() + RENEW_S
        self._alone_since_s = time.monotonic() + FIRST_S
        for fd in (listener.fileno(), *(s.fileno() for s in sources if s.fileno() >= 0)):
            self._epoll.register(fd, select.EPOLLIN)

    def serve(self, linger_s: float = LINGER_S) -> None:
        """Until no runtime has been connected for so long."""
        while self._clients or time.monotonic() < self._alone_since_s + linger_s:
            self.once(self._pause_s(linger_s))

    def close(self) -> None:
        """Let go of all calls and everybody."""
        for call in list(self._calls.values()):
            self._hands.release(call.place)
        for client in self._clients.values():
            client.connection.close()
        for source in self._sources:
            source.close()
        self._listener.close()
        self._epoll.close()

    def once(self, pause_s: float) -> None:
        """Wait for something to do, at most so long, and do it."""
        for fd, _ in self._epoll.poll(max(0.0, pause_s)):
            if fd == self._listener.fileno():
                self._accept()
            elif (client := self._clients.get(fd)) is not None:
                self._hear(client)
        touched = set[str]()
        for source in self._sources:
            touched |= source.take()
        now = time.monotonic()
        for pool in list(self._pools.values()):
            for folder in touched & pool.watched.keys():
                del pool.watched[folder]  # it tells of one crossing, and has
            if self._concerns(pool, touched):
                pool.control.next_look_s = min(pool.control.next_look_s, pool.looked_s + LEAST_PAUSE_S)
            if now >= pool.control.next_look_s:
                self._look(pool)
        if now >= self._renew_s:
            self._renew_s = now + RENEW_S
            self._hands.renew()

    def _pause_s(self, linger_s: float) -> float:
        now = time.monotonic()
        due = [pool.control.next_look_s for pool in self._pools.values()]
        if self._calls:
            due.append(self._renew_s)
        if not self._clients:
            due.append(self._alone_since_s + linger_s)
        periods = [source.period_s for source in self._sources if source.period_s] if self._calls else []
        return min([3600.0, *(when - now for when in due), *periods])

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if not ms.is_ours(connection):
            connection.close()
            return
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _hear(self, client: _Client) -> None:
        for _ in range(64):  # others may have something to say too
            try:
                packet = client.connection.recv(ms.LONGEST)
            except BlockingIOError:
                return
            except ConnectionError:
                packet = b""
            if not packet:
                self._leave(client)
                return
            try:
                self._handle(client, ms.to_controller.decode(packet))
            except (msgspec.DecodeError, ValueError, OSError) as error:
                # one call that cannot be controlled must not cost the others their controller
                _log.warning("ignored a message: %s", error)

    def _leave(self, client: _Client) -> None:
        for leaf in list(client.leaves):
            self._end(ms.Ended(leaf=leaf))
        self._epoll.unregister(client.connection.fileno())
        del self._clients[client.connection.fileno()]
        client.connection.close()
        self._alone_since_s = time.monotonic()

    def _handle(self, client: _Client, message: ms.ToController) -> None:
        match message:
            case ms.Began():
                self._begin(client, message)
            case ms.Ended():
                done = self._end(message)
                if message.asks:
                    self._tell(client, done or ms.Done(leaf=message.leaf))
            case ms.Valued():
                self._value(message)

    def _value(self, valued: ms.Valued) -> None:
        """Known from now on, also to hosts on which it begins its first call later."""
        known = self._worths.pop(valued.program, None)
        if len(self._worths) >= MOST_PROGRAMS:
            del self._worths[next(iter(self._worths))]
        said = {name: value for name, value in msgspec.structs.asdict(valued).items() if value is not None}
        worth = msgspec.structs.replace(known, **said) if known else tc.Worth(**said)
        self._worths[valued.program] = worth
        for pool in self._pools.values():
            if any(call.pool is pool and call.program == worth.program for call in self._calls.values()):
                self._carry_out(pool, pool.control.worth(worth))

    def _begin(self, client: _Client, began: ms.Began) -> None:
        place = Place(began.leaf, began.folders, began.backend, began.limit_bytes)
        if began.leaf in self._calls:
            return
        if not os.path.isdir(place.memory):
            _log.info("%s is not there: over already, or of another mount namespace", began.leaf)
            return
        pool = self._pool(place)
        call = tc.Call(
            tool_call=began.leaf,
            program=began.program,
            key=began.key,
            stated_bytes=began.stated_bytes,
            limit_bytes=began.limit_bytes,
            intent=began.intent,
        )
        if began.again:
            self._hands.reset(place)
        done = ms.Done(leaf=began.leaf)
        self._calls[began.leaf] = _Call(place, began.program, pool, client, done)
        client.leaves[began.leaf] = None
        actions = pool.control.began(time.monotonic(), call)
        if (known := self._worths.get(began.program)) is not None:
            actions += pool.control.worth(known)
        if began.weight is not None or began.priority is not None:
            worth = tc.Worth(program=began.program, weight=began.weight, priority=began.priority)
            actions += pool.control.worth(worth)
        self._carry_out(pool, actions)
        self._reweigh(pool, place)

    def _pool(self, place: Place) -> _Pool:
        # leaf, program, instance, and the folder of all instances in one place
        top = os.path.dirname(os.path.dirname(os.path.dirname(place.memory)))
        view = host_of(top, v1=place.v1)
        pool = self._pools.get(view.name)
        if pool is None:
            pool = self._pools[view.name] = _Pool(view, tc.ToolControl(self._terms, self._memory))
        pool.trees.setdefault(top, place)
        return pool

    def _end(self, ended: ms.Ended) -> ms.Done | None:
        call = self._calls.pop(ended.leaf, None)
        if call is None:
            return None
        call.client.leaves.pop(ended.leaf, None)
        now, pool = time.monotonic(), call.pool
        waited_s = pool.control.waited_s(now, ended.leaf)
        actions = pool.control.ended(now, ended.leaf, ended.peak_bytes, by_itself=ended.by_itself)
        self._hands.release(call.place)
        for source in self._sources:
            source.forget(call.place.memory)
        self._carry_out(pool, actions)
        self._reweigh(pool, call.place)
        if not any(other.pool is pool for other in self._calls.values()):
            self._forget(pool)
        return msgspec.structs.replace(call.done, waited_s=waited_s)

    def _forget(self, pool: _Pool) -> None:
        """It has no calls now. What it learned is kept by all; what programs are worth is told again."""
        for folder in pool.trees:
            for source in self._sources:
                source.forget(folder)
            self._hands.alarm(folder, None)
        del self._pools[pool.view.name]

    def _concerns(self, pool: _Pool, touched: set[str]) -> bool:
        if not touched:
            return False
        if "" in touched or touched & pool.trees.keys():
            return True
        return any(call.pool is pool and call.place.memory in touched for call in self._calls.values())

    def _look(self, pool: _Pool) -> None:
        pool.looked_s = time.monotonic()
        host = pool.view.seen()
        everybody = pool.control.needs_usage(host)
        seen = {}
        for leaf, call in self._calls.items() if everybody else ():
            if call.pool is pool:
                seen[leaf] = call.seen()
        if (first := pool.control.first) is not None and not everybody:
            seen[first] = self._calls[first].seen()
        if everybody:
            _log.info("%s, calls hold %s MiB", host, [what.memory_bytes >> 20 for what in seen.values()])
        self._carry_out(pool, pool.control.looked(time.monotonic(), host, seen))
        self._watch(pool, host)

    def _watch(self, pool: _Pool, host: tc.HostSeen) -> None:
        """Have the kernel tell when calls have grown by as much as is free to take."""
        growth = pool.control.until_tight_bytes(host)
        for folder, place in pool.trees.items():
            knobs = place.above(folder).knobs()
            if pool.control.tight:
                # also one that has told: it would go on slowing down all that is under the folder
                pool.watched.pop(folder, None)
                self._hands.alarm(folder, None)
                continue
            limit = knobs.memory_now() + growth
            # a new threshold for each page would cost more than a look too many
            if abs(limit - pool.watched.get(folder, 0)) > max(1 << 20, growth // 16):
                pool.watched[folder] = limit
                _log.info("looks when %s holds %d bytes", folder, limit)
                if not place.v1:
                    self._hands.alarm(folder, limit)
                for source in self._sources:
                    source.watch_growth(folder, limit)
                if knobs.memory_now() >= limit:  # while it was set: nothing would tell of that
                    pool.control.next_look_s = time.monotonic()

    def _carry_out(self, pool: _Pool, actions: list[tc.Action]) -> None:
        for action in actions:
            try:
                self._do(pool, action)
                _log.info("%s", action)
            except OSError as error:
                _log.warning("%s failed: %s", action, error)

    def _do(self, pool: _Pool, action: tc.Action) -> None:
        if isinstance(action, tc.Weigh):
            self._weigh(pool, action)
            return
        call = self._calls[action.tool_call]
        match action:
            case tc.Cap():
                if action.limit_bytes is not None:
                    self._touch(call)
                    for source in self._sources:
                        source.watch_stop(call.place.memory)
                self._hands.cap(call.place, action.limit_bytes)
            case tc.Protect():
                self._hands.protect(call.place, action.held_bytes)
            case tc.Freeze():
                self._touch(call)
                self._hands.freeze(call.place)
            case tc.Thaw():
                self._hands.thaw(call.place)
            case tc.Kill():
                self._touch(call)
                host_bytes = pool.view.seen().total_bytes
                call.done = ms.Done(
                    leaf=action.tool_call,
                    waited_s=action.waited_s,
                    why=action.why.value,
                    memory_bytes=action.memory_bytes,
                    host_bytes=host_bytes,
                )
                self._hands.kill(call.place)

    def _weigh(self, pool: _Pool, action: tc.Weigh) -> None:
        pool.programs[action.program] = action.weight
        for call in self._calls.values():
            if call.pool is pool and call.program == action.program:
                self._weigh_folder(pool, os.path.dirname(call.place.cpu), action.weight, call.place)

    def _weigh_folder(self, pool: _Pool, folder: str, weight: int, place: Place) -> None:
        if pool.weights.get(folder, 100) != weight:
            pool.weights[folder] = weight
            self._hands.weigh(folder, weight, v1=place.v1)

    def _reweigh(self, pool: _Pool, place: Place) -> None:
        """A call began or ended in this place: its program's folder counts if it has calls, and an instance
        as much as its programs together, whosoever process they are of."""
        calls = [call for call in self._calls.values() if call.pool is pool]
        programs = {os.path.dirname(call.place.cpu): call.program for call in calls}
        folder = os.path.dirname(place.cpu)
        self._weigh_folder(pool, folder, pool.programs.get(programs.get(folder, ""), 100), place)
        sums: dict[str, int] = {os.path.dirname(folder): 0}
        for program in programs:
            instance = os.path.dirname(program)
            sums[instance] = sums.get(instance, 0) + pool.weights.get(program, 100)
        for instance, weight in sums.items():
            self._weigh_folder(pool, instance, min(10_000, weight or 100), place)

    def _touch(self, call: _Call) -> None:
        if not call.touched:
            call.touched = True
            self._tell(call.client, ms.Touched(leaf=call.place.leaf))

    def _tell(self, client: _Client, message: ms.ToRuntime) -> None:
        try:
            client.connection.send(ms.encode(message))
        except OSError as error:
            # it reads too late or is gone, which its descriptor tells next
            _log.info("a runtime was not told: %s", error)
