"""The memory of tools' hosts: what the programs of one host need there, beside the KV of engines.

A seated program needs what its tools hold now or what its next ones are predicted to, whichever is
more. A paused one needs nothing to come, but a tool of it may still run: it holds its memory until it
ends. These are predictions, and how many of them meet is a matter of trust (the overcommit). What a tool
needs that was killed and starts again is certain: it is *firm*, for one such program at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agentsched.core.state import Program, State

Turn = tuple[float, int]
"""A program's place in line; lower goes first."""


@dataclass(frozen=True, slots=True)
class Need:
    """Memory of one program on its host, bytes: of tools that run, and if it has a seat."""

    running_bytes: int
    seated_bytes: int
    seated: bool

    @classmethod
    def of(cls, state: State, program: Program, *, killed: bool) -> Need:
        """What is known and predicted now, ``killed``: with what a killed tool needs that starts again.
        Nobody needs more than all that its host has."""
        most_bytes, peak_bytes = state.hosts[program.host], state.memory.peak_bytes
        running = sum(
            max(tool.memory_bytes, peak_bytes(tool.key, tool.expected_bytes))
            for tool in program.running.values()
        )
        running = min(most_bytes, max(running, program.killed_bytes if killed else 0))
        seated = max(running, min(most_bytes, state.memory.next_peak_bytes(program.peaks)))
        return cls(running, seated, program.foreground)

    @property
    def now_bytes(self) -> int:
        return self.seated_bytes if self.seated else self.running_bytes

    @property
    def freed_bytes(self) -> int:
        """What pausing it gives back at once."""
        return self.seated_bytes - self.running_bytes


NOTHING = Need(0, 0, False)


class HostLedger:
    """One host. Programs are put again whenever something about them changes."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.need_bytes = 0
        self.seated: dict[str, Need] = {}
        self.lingering: dict[str, Need] = {}  # of paused programs whose tools run
        self._killed: dict[str, Turn] = {}
        self.leavers: dict[str, None] = {}
        """Seated programs whose gaps last too long, longest since first."""
        self.firm: tuple[Turn, str] | None = None
        """The first in line of those whose tool was killed: what it needs is kept free for it."""

    def put(self, name: str, need: Need, turn: Turn | None) -> None:
        """What the program needs here from now on. ``turn``: its place in line, if a tool of it was
        killed and starts again."""
        left = name in self.leavers
        self.drop(name)
        if turn is not None:
            self._killed[name] = turn
            self._find_firm()
        if need.seated:
            self.seated[name] = need
            if left:
                self.leavers[name] = None
        elif need.running_bytes:
            self.lingering[name] = need
        self.need_bytes += need.now_bytes

    def drop(self, name: str) -> None:
        """The program needs nothing here any more."""
        self.leavers.pop(name, None)
        need = self.seated.pop(name, None) or self.lingering.pop(name, None)
        self.need_bytes -= need.now_bytes if need else 0
        if self._killed.pop(name, None) is not None:
            self._find_firm()

    def may_leave(self, name: str) -> None:
        """The seated program may be paused for the sake of others: its gap lasts too long."""
        if name in self.seated:
            self.leavers[name] = None

    def stays(self, name: str) -> None:
        """The program is back, so it does not leave."""
        self.leavers.pop(name, None)

    def over_bytes(self, overcommit: float) -> float:
        """By how much needs exceed what there is for them; negative if they fit."""
        firm_bytes = self._of(self.firm[1]).now_bytes if self.firm else 0
        return self.need_bytes - firm_bytes - (self.memory_bytes - firm_bytes) * overcommit

    def who_leaves(
        self, name: str, need: Need, overcommit: float, holds: Callable[[str], bool]
    ) -> list[str] | None:
        """Who has to leave for a program without a seat to fit; None if it cannot.

        ``holds``: whether tools of a program run that one should wait for. Nobody leaves in vain, while
        such a tool holds all that it needs; and the program always fits where nobody else has a seat and
        no such tool runs.
        """
        over_bytes = self.over_bytes(overcommit) - self._of(name).now_bytes + need.seated_bytes
        leave: list[str] = []
        for leaver in self.leavers:
            if over_bytes <= 0:
                break
            if self.seated[leaver].freed_bytes > 0 or not holds(leaver):
                leave.append(leaver)
                over_bytes -= self.seated[leaver].freed_bytes
        if over_bytes <= 0:
            return leave
        still = (other for other in (*self.lingering, *leave) if other != name)
        alone = len(leave) == len(self.seated) and not any(holds(other) for other in still)
        return leave if alone else None

    def _of(self, name: str) -> Need:
        return self.seated.get(name) or self.lingering.get(name) or NOTHING

    def _find_firm(self) -> None:
        self.firm = min(((turn, name) for name, turn in self._killed.items()), default=None)

    def check_invariants(self) -> None:
        """Raises AssertionError if the books disagree."""
        needs = (*self.seated.values(), *self.lingering.values())
        assert self.need_bytes == sum(need.now_bytes for need in needs), "memory needed is miscounted"
        assert not self.seated.keys() & self.lingering.keys(), "a program is counted twice"
        assert self.leavers.keys() <= self.seated.keys(), "who leaves has no seat"
        assert (self.firm is None) is not bool(self._killed), "nothing is kept for who was killed"
