"""The second resource of admission: memory of the hosts on which programs' tools run.

A program gets a seat only where both its engine's KV and its host's memory have room, and it gets both
at once: nobody holds one of them while waiting for the other. Who waits for one host does not hold
back who runs on another, but does hold back who stands behind for the same host, or else large
programs would never see it empty enough. Where nobody of a host has a seat, the first always
fits. So somebody can always run to the end.

Needs are high quantiles and seldom meet: most programs compute, and hold nothing on their host. How far
to trust in that is found online: the bound rises with the time that tools run while somebody waits for
their host, and falls with the time that killed tools have lost, so that these lose ``LOST_SHARE`` of it.
That is much, for a tool that is killed delays one program, and a seat that stays empty one too: with a
smaller share, sweeps showed shorter tails and fewer programs an hour.

A tool that was killed must not meet the same crowd again. What it needs is kept free for it, for one
program at a time, the first in line; those behind it are paused in their gaps until there is room. What
it needs is learned by doubling. No gap holds up others for longer than ``PATIENCE_S``: its tool may hang.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agentsched.core import events as ev
from agentsched.core.hosts import HostLedger, Need, Turn
from agentsched.core.state import Program, State

PATIENCE_S = 600.0
"""A gap that has lasted so long holds up nobody any more: its tool may hang, and somebody has to go on."""


class MemoryOvercommit:
    """One host's factor."""

    FIRST, LEAST, MOST = 2.0, 1.0, 8.0
    LOST_SHARE = 0.5
    GAIN = 0.002
    """Relative change for a second of lost time."""

    def __init__(self) -> None:
        self.factor = self.FIRST

    def ran(self, wall_s: float, *, killed: bool, waited_for: bool) -> None:
        """A tool ran so long there, and whether somebody waits for the host."""
        if killed:
            self.factor = max(self.LEAST, self.factor * math.exp(-self.GAIN * wall_s))
        elif waited_for:
            self.factor = min(self.MOST, self.factor * math.exp(self.GAIN * self.LOST_SHARE * wall_s))


@dataclass(slots=True)
class _Host:
    ledger: HostLedger
    overcommit: MemoryOvercommit
    full: bool = False  # its first in line was refused, and nothing has changed since


class HostGate:
    """All hosts. A learner; ``Seats`` asks it, and tells it what it did."""

    def __init__(self, turn: Callable[[Program], Turn]) -> None:
        """``turn``: a program's place in line."""
        self._turn = turn
        self._hosts: dict[str, _Host] = {}
        self._now = 0.0

    def full(self) -> frozenset[str]:
        """Hosts whose first in line was refused since anything changed there."""
        if not self._hosts:
            return frozenset()
        return frozenset(name for name, host in self._hosts.items() if host.full)

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        self._now = now
        if not self._hosts and not isinstance(event, ev.HostAttached):
            return
        limit = None if subject is None else self._hosts.get(subject.host)
        match event:
            case ev.HostAttached():
                self._attach(state, event)
            case ev.HostLost():
                del self._hosts[event.host]
            case ev.EngineLost():
                for host in self._hosts.values():
                    for name in [name for name in host.ledger.seated if state.programs[name].seat is None]:
                        self.recount(state, state.programs[name])
            case ev.CallStarted() | ev.FirstToken():
                pass  # nothing changes on a host
            case ev.ProgramClosed() if subject is not None and limit is not None:
                limit.ledger.drop(subject.name)
                limit.full = False
            case _ if subject is not None and limit is not None:
                if isinstance(event, ev.ToolFinished):
                    limit.overcommit.ran(
                        event.wall_s, killed=event.exit_status == ev.KILLED, waited_for=limit.full
                    )
                self.recount(state, subject)
            case _:
                pass

    def recount(self, state: State, program: Program) -> None:
        """Count the program as it is now: after an event about it, or after it was seated or paused."""
        host = self._hosts.get(program.host)
        if host is not None:
            killed = program.killed_bytes > 0 and not self._long_away(program)
            host.ledger.put(
                program.name, Need.of(state, program, killed=killed), self._turn(program) if killed else None
            )
            if not program.in_gap:
                host.ledger.stays(program.name)
            host.full = False

    def may_leave(self, state: State, name: str) -> None:
        """The program's gap lasts longer than its seat is worth."""
        program = state.programs.get(name)
        if program is not None and (host := self._hosts.get(program.host)) is not None:
            host.ledger.may_leave(name)
            host.full = False

    def who_leaves(self, state: State, program: Program) -> list[Program] | None:
        """Who has to leave for the program to fit on its host; None if it cannot be, and it is full."""
        host = self._hosts.get(program.host)
        if host is None:
            return []
        leave = self._leave(state, host, program)
        host.full = leave is None
        return None if leave is None else [state.programs[name] for name in leave]

    def has_room(self, state: State, program: Program) -> bool:
        """Whether the program fits on its host as it is."""
        host = self._hosts.get(program.host)
        return host is None or self._leave(state, host, program) == []

    def _leave(self, state: State, host: _Host, program: Program) -> list[str] | None:
        need = Need.of(state, program, killed=program.killed_bytes > 0)
        return host.ledger.who_leaves(
            program.name, need, host.overcommit.factor, lambda name: self._holds(state.programs[name])
        )

    def look_again(self, state: State) -> None:
        """Time has passed: what was refused may be possible now."""
        for host in self._hosts.values():
            host.full = False
            if host.ledger.firm is not None and self._long_away(state.programs[host.ledger.firm[1]]):
                self.recount(state, state.programs[host.ledger.firm[1]])
            for name in host.ledger.seated:
                if self._long_away(state.programs[name]):
                    host.ledger.may_leave(name)

    def _long_away(self, program: Program) -> bool:
        """Whether its gap has lasted so long that nobody waits for its tools any more."""
        return program.gap_since_s is not None and self._now - program.gap_since_s >= PATIENCE_S

    def _holds(self, program: Program) -> bool:
        """Whether tools of it run that one should wait for."""
        return bool(program.running or program.killed_bytes) and not self._long_away(program)

    def relief(self, state: State) -> list[Program]:
        """Who has to be paused for a tool that was killed to find room: programs in a gap, the last in
        line first, that stand behind the first one whose tool was killed."""
        paused: list[Program] = []
        for host in self._hosts.values():
            ledger = host.ledger
            if ledger.firm is None or (over_bytes := ledger.over_bytes(host.overcommit.factor)) <= 0:
                continue
            away = [state.programs[name] for name in ledger.seated if state.programs[name].in_gap]
            behind = [
                program
                for program in away
                if self._turn(program) > ledger.firm[0] and ledger.seated[program.name].freed_bytes > 0
            ]
            for program in sorted(behind, key=self._turn, reverse=True):
                if over_bytes <= 0:
                    break
                paused.append(program)
                over_bytes -= ledger.seated[program.name].freed_bytes
        return paused

    def ledgers(self) -> Iterator[tuple[str, HostLedger, float]]:
        """Of each host: name, ledger, overcommit."""
        for name, host in self._hosts.items():
            yield name, host.ledger, host.overcommit.factor

    def _attach(self, state: State, event: ev.HostAttached) -> None:
        host = self._hosts.get(event.host)
        if host is not None:
            host.ledger.memory_bytes, host.full = event.memory_bytes, False
            return
        self._hosts[event.host] = _Host(HostLedger(event.memory_bytes), MemoryOvercommit())
        for program in state.programs.values():
            if program.host == event.host:
                self.recount(state, program)

    def check_invariants(self, state: State) -> None:
        """Raises AssertionError unless every program is counted on its host, and there alone."""
        assert self._hosts.keys() == state.hosts.keys(), "hosts disagree"
        for name, host in self._hosts.items():
            ledger = host.ledger
            ledger.check_invariants()
            programs = [program for program in state.programs.values() if program.host == name]
            seated = {program.name for program in programs if program.seat is not None}
            assert ledger.seated.keys() == seated, f"{name}: its seats disagree"
            assert ledger.memory_bytes == state.hosts[name], f"{name}: its size disagrees"
            lingering = {p.name for p in programs if p.seat is None and (p.running or p.killed_bytes)}
            assert ledger.lingering.keys() <= lingering, f"{name}: memory of tools that ended is held"
