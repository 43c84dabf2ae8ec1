"""The time between the calls of simulated programs: their tools run, on hosts with limits or without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from agentsched.core import events as ev
from agentsched.workloads.scripts import Script, Turn
from agentsched.workloads.tool_host import Happened, HostUsage, ToolHost, ToolStep

TOLD_AT = (0.25, 0.5, 0.75)
TOLD_LEAST_S = 2.0
"""Shorter tools are over before anybody asks."""

TOLD_SPREAD = 0.2
"""Of the logarithm of what is told over what is true."""


@dataclass(frozen=True, slots=True)
class _Gap:
    program: str
    turn: Turn
    tool_call: str | None
    over: Callable[[], None]


class Gaps:
    """Ends gaps: on hosts, which report what tools use, or, without hosts, after the time they take alone.

    Programs are placed on hosts in turn as they begin, unless their scripts name one; what a tool
    call starts runs on the host of its program.
    """

    def __init__(
        self,
        at: Callable[[float, Callable[[], None]], None],
        post: Callable[[ev.AnyEvent], None],
        *,
        hosts: int = 1,
        cores: float | None = None,
        memory_bytes: int | None = None,
        told_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        """``at`` has an action done at a time; ``post`` tells the core. ``cores`` and ``memory_bytes`` are
        those of each host; there are none if both are None, and then ``told_share`` of the tools tell of
        their progress, roughly."""
        limited = cores is not None or memory_bytes is not None
        names = [f"h{number}" for number in range(hosts)] if limited else []
        self.hosts = {name: ToolHost(cores=cores, memory_bytes=memory_bytes) for name in names}
        self._at, self._post = at, post
        self._told_share, self._random = told_share, Random(seed)
        self._placed = 0
        self._gaps: dict[str, _Gap] = {}
        self._planned: dict[str, float | None] = dict.fromkeys(names)

    @property
    def usage(self) -> HostUsage | None:
        """Of all hosts; None without hosts."""
        return HostUsage.total(host.usage for host in self.hosts.values()) if self.hosts else None

    def attach(self) -> None:
        """Tell the core of the hosts whose memory is limited."""
        for name, host in self.hosts.items():
            if host.memory_bytes is not None:
                self._post(ev.HostAttached(host=name, memory_bytes=host.memory_bytes))

    def place(self, script: Script, parent: str) -> str:
        """The host of a program that begins, "" without hosts. ``parent``: that of the program which
        started it, if any. Raises ValueError if the script names one that does not exist."""
        if not self.hosts:
            return ""
        if script.host:
            if script.host not in self.hosts:
                raise ValueError(f"script {script.program!r}: there is no host {script.host!r}")
            return script.host
        if parent:
            return parent
        self._placed += 1
        return list(self.hosts)[(self._placed - 1) % len(self.hosts)]

    def begin(
        self,
        program: str,
        turn: Turn,
        now: float,
        over: Callable[[], None],
        *,
        host: str,
        tool_call: str | None,
    ) -> None:
        """The program is away as ``turn`` says; ``over`` is called at the end. It has no other gap then."""
        gap = _Gap(program, turn, tool_call, over)
        if not host:
            tells = turn.gap_s >= TOLD_LEAST_S and self._random.random() < self._told_share
            if turn.command or tells:
                self._started(gap)
            if tells and tool_call is not None:
                self._tell(gap, tool_call, now)
            self._at(now + turn.gap_s, over)
            return
        self._gaps[program] = gap
        self._started(gap)
        self.hosts[host].start(
            program, gap_s=turn.gap_s, cpu_s=turn.cpu_s, memory_bytes=turn.memory_bytes, now=now
        )
        self._plan(host)

    def _tell(self, gap: _Gap, tool_call: str, now: float) -> None:
        for true in TOLD_AT:
            event = ev.ToolProgressed(
                tool_call=tool_call,
                program=gap.program,
                cpu_s=gap.turn.cpu_s * true,
                memory_bytes=gap.turn.memory_bytes,
                done_fraction=min(1.0, true * self._random.lognormvariate(0.0, TOLD_SPREAD)),
            )
            self._at(now + true * gap.turn.gap_s, lambda event=event: self._post(event))  # type: ignore[misc]

    def check_invariants(self) -> None:
        """Raises AssertionError if a host's books disagree."""
        for host in self.hosts.values():
            host.check_invariants()

    def _plan(self, name: str) -> None:
        when_s = self.hosts[name].next_s
        if when_s is not None and when_s != self._planned[name]:
            self._planned[name] = when_s
            self._at(when_s, lambda: self._due(name, when_s))

    def _due(self, name: str, when_s: float) -> None:
        if self._planned[name] != when_s:
            return
        self._planned[name] = None
        for step in self.hosts[name].advance(when_s):
            gap = self._gaps[step.name]
            if step.what is Happened.RESTARTED:
                self._started(gap)
                continue
            self._finished(gap, step)
            if step.what is not Happened.KILLED:
                del self._gaps[step.name]
                gap.over()
        self._plan(name)

    def _started(self, gap: _Gap) -> None:
        if gap.tool_call is not None:
            self._post(
                ev.ToolStarted(
                    tool_call=gap.tool_call,
                    program=gap.program,
                    tool=gap.turn.tool,
                    command=gap.turn.command,
                )
            )

    def _finished(self, gap: _Gap, step: ToolStep) -> None:
        if gap.tool_call is not None:
            self._post(
                ev.ToolFinished(
                    tool_call=gap.tool_call,
                    program=gap.program,
                    exit_status=0 if step.what is Happened.ENDED else ev.KILLED,
                    wall_s=step.wall_s,
                    cpu_s=step.cpu_s,
                    peak_memory_bytes=step.peak_memory_bytes,
                )
            )
