"""The second resource of admission: memory of the hosts on which programs' tools run.

A program gets a seat only where both its engine's KV and its host's memory have room, and it gets both
at once: nobody holds one of them while waiting for the other. Who waits for one host does not hold
back who runs on another, but does hold back who stands behind for the same host, or else large
programs would never see it empty enough. Where nobody of a host has a seat, the first always
fits. So somebody can always run to the end.

Needs are high quantiles and seldom meet: most programs compute, and hold nothing on their host. How far
to trust in that is found online: the bound rises with the time that tools run while somebody waits for
their host, and falls with the time that killed tools have lost, so that these lose ``LOST_SHARE`` of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from agentsched.core import events as ev
from agentsched.core.hosts import HostLedger, Need
from agentsched.core.state import Program, State


class MemoryOvercommit:
    """One host's factor."""

    FIRST, LEAST, MOST = 1.0, 0.5, 8.0
    LOST_SHARE = 0.02
    GAIN = 0.02
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

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}

    def line_of(self, program: Program) -> str:
        """Whose line the program stands in: its host's, or "" where no host limits it."""
        return program.host if program.host in self._hosts else ""

    def full(self) -> set[str]:
        """Hosts whose first in line was refused since anything changed there."""
        return {name for name, host in self._hosts.items() if host.full}

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
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
            host.ledger.put(program.name, Need.of(state, program), seated=program.seat is not None)
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
        bound = host.ledger.memory_bytes * host.overcommit.factor
        leave = host.ledger.who_leaves(program.name, Need.of(state, program), bound)
        host.full = leave is None
        return None if leave is None else [state.programs[name] for name in leave]

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
            lingering = {p.name for p in programs if p.seat is None and p.running}
            assert ledger.lingering.keys() <= lingering, f"{name}: memory of tools that ended is held"
