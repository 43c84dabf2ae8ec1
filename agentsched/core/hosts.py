"""The memory of tools' hosts: what the programs of one host need there, beside the KV of engines.

A seated program needs what its tools hold now or what its next ones are predicted to, whichever is
more. A paused one needs nothing to come, but a tool of it may still run: it holds its memory until it
ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentsched.core.state import Program, State


@dataclass(frozen=True, slots=True)
class Need:
    """Memory of one program on its host, bytes: of tools that run, and if it has a seat."""

    running_bytes: int
    seated_bytes: int

    @classmethod
    def of(cls, state: State, program: Program) -> Need:
        """What is known and predicted now."""
        peak_bytes = state.memory.peak_bytes
        running = sum(max(tool.memory_bytes, peak_bytes(tool.key)) for tool in program.running.values())
        return cls(running, max(running, state.memory.next_peak_bytes(program.peaks)))


class HostLedger:
    """One host. Programs are put again whenever something about them changes."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.need_bytes = 0
        self.seated: dict[str, Need] = {}
        self.lingering: dict[str, int] = {}  # of paused programs' tools, bytes
        self._leavers: dict[str, None] = {}

    def put(self, name: str, need: Need, *, seated: bool) -> None:
        """What the program needs here from now on."""
        left = name in self._leavers
        self.drop(name)
        if seated:
            if left:
                self._leavers[name] = None
            self.seated[name] = need
            self.need_bytes += need.seated_bytes
        elif need.running_bytes:
            self.lingering[name] = need.running_bytes
            self.need_bytes += need.running_bytes

    def drop(self, name: str) -> None:
        """The program needs nothing here any more."""
        need = self.seated.pop(name, None)
        self.need_bytes -= self.lingering.pop(name, 0) if need is None else need.seated_bytes
        self._leavers.pop(name, None)

    def may_leave(self, name: str) -> None:
        """The seated program may be paused for the sake of others: its gap lasts too long."""
        if name in self.seated:
            self._leavers[name] = None

    def stays(self, name: str) -> None:
        """The program is back, so it does not leave."""
        self._leavers.pop(name, None)

    def who_leaves(self, name: str, need: Need, bound_bytes: float) -> list[str] | None:
        """Who has to leave for a program without a seat to fit within the bound; None if it cannot. It
        always fits where nobody else has a seat, whatever still runs."""
        need_bytes = self.need_bytes - self.lingering.get(name, 0) + need.seated_bytes
        leave: list[str] = []
        leavers = iter(self._leavers)
        while need_bytes > bound_bytes and len(leave) < len(self.seated):
            leaver = next(leavers, None)
            if leaver is None:
                return None
            leave.append(leaver)
            need_bytes -= self.seated[leaver].seated_bytes - self.seated[leaver].running_bytes
        return leave

    def check_invariants(self) -> None:
        """Raises AssertionError if the books disagree."""
        seated = sum(need.seated_bytes for need in self.seated.values())
        assert self.need_bytes == seated + sum(self.lingering.values()), "memory needed is miscounted"
        assert not self.seated.keys() & self.lingering.keys(), "a program is counted twice"
        assert self._leavers.keys() <= self.seated.keys(), "who leaves has no seat"
