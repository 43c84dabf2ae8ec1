"""Runs an agent in a leaf, and each command that it runs in a leaf of its own, by what a source tells.

The agent keeps its place: terminal, process group and standard streams are the caller's. A command is moved
into its leaf once it has executed (some tenths of a millisecond later by BPF, some hundredths of a second by
polling); processes that it made before follow. Its leaf goes when nothing is left in it; what is still
there when the agent ends is killed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from agentsched.cgroups import tree
from agentsched.cgroups.bpf.facts import Source
from agentsched.cgroups.contract import Leaf, SandboxError, ToolSpec, Usage
from agentsched.cgroups.hints import Hint
from agentsched.cgroups.sandbox import Sandbox
from agentsched.cgroups.starting import inside
from agentsched.cgroups.wrapping.endings import Ending
from agentsched.cgroups.wrapping.tracking import Became, Began, Ended, Joined, Move, Tracker

_log = logging.getLogger(__name__)

PROGRAMS = ("lifecycle", "commands")
"""The BPF programs that are needed."""

_LOOK_S = 0.2
_NICE = -10
_SETTLE_S = 0.05
_STATUS_S = 0.5
"""For so long the status of what has ended may come late: the agent must have waited for it first."""


@dataclass(eq=False, slots=True)
class Command:
    """One command of the agent. ``leaf`` is where it runs, since ``moved_s``; ``words`` what it executed."""

    number: int
    pid: int
    words: tuple[str, ...]
    whole: bool
    began_s: float
    moved_s: float
    leaf: Leaf
    ending: Ending
    _leaves: ExitStack = field(repr=False)
    ended_s: float | None = None
    status: int | None = None
    told: bool = False


class Listener(Protocol):
    """Who wants to know. Called in the sensing thread: must not wait."""

    def began(self, command: Command) -> None: ...

    def became(self, command: Command, words: tuple[str, ...], whole: bool) -> None:
        """The same process executed something else."""
        ...

    def ended(self, command: Command, status: int | None, wall_s: float, used: Usage) -> None:
        """``status`` is None where it cannot be known."""
        ...


class Agent:
    """One agent. ``start`` it, ``wait`` for its end, ``close``."""

    def __init__(
        self,
        sandbox: Sandbox,
        source: Source,
        listener: Listener,
        *,
        names: Collection[str] = (),
        hint: Hint | None = None,
    ) -> None:
        self._sandbox, self._source, self._listener = sandbox, source, listener
        self._names, self._hint, self._weight = names, hint, hint.cpu_weight if hint else None
        self._commands: dict[int, Command] = {}
        self._spare: tuple[ExitStack, Leaf] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._own = ExitStack()
        self._leaf: Leaf | None = None
        self._tracker: Tracker | None = None
        self._thread: threading.Thread | None = None

    def start(
        self, argv: Sequence[str], environment: Mapping[str, str], blocked: Collection[int] = ()
    ) -> int:
        """Start the agent, with these signals blocked, as a child in this process's own group; its number.
        Raises ``HostRefused``, and ``OSError`` if it cannot be started."""
        _, leaf = self._own.enter_context(self._sandbox.leaf("agent"))
        self._leaf = leaf
        self._source.watch(leaf)
        self._spare = self._new_leaf()
        started = inside(list(argv), environment, leaf.entries())
        pid = os.posix_spawnp(
            started[0], started, dict(environment), setsigmask=blocked, setsigdef=(signal.SIGPIPE,)
        )
        self._tracker = Tracker(pid, leaf.cgroup_id or 0, argv[0], self._names)
        self._thread = threading.Thread(target=self._sense, name="agent's commands", daemon=True)
        self._thread.start()
        return pid

    def claimed(self, pid: int, words: tuple[str, ...]) -> None:
        """A process waits to become a command: it is in its leaf when this returns."""
        if self._tracker is not None:
            with self._lock:
                for move in self._tracker.claim(pid, words, time.monotonic()):
                    self._carry_out(move)

    def close(self) -> None:
        """The agent has ended: learn what happened to the last commands, and end what is left."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for command in list(self._commands.values()):
                self._end(command, None, time.monotonic())
                self._tell(command, last=True)
                self._remove(command)
        if self._spare is not None:
            self._spare[0].close()
        if self._leaf is not None:
            self._source.forget(self._leaf)
        self._own.close()

    def _sense(self) -> None:
        assert self._tracker is not None
        # on a busy machine it would come late by what others compute
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        until_s = math.inf
        while time.monotonic() < until_s:
            over = self._over.is_set()
            if over and until_s == math.inf:
                # what it left may go on making processes for ever
                until_s = time.monotonic() + _STATUS_S
            events = self._source.events(_SETTLE_S if over else _LOOK_S)
            with self._lock:
                for event in events:
                    for move in self._tracker.heard(event):
                        self._carry_out(move)
                self._tidy()
            if over and not events:
                return

    def _carry_out(self, move: Move) -> None:
        if isinstance(move, Began):
            self._begin(move)
            return
        command = self._commands.get(move.command)
        if command is None:
            return
        match move:
            case Joined():
                tree.enter(command.leaf.entries(), move.pid)
            case Became():
                self._listener.became(command, move.words, move.whole)
            case Ended():
                self._end(command, move.status, move.at_s)
                self._tell(command)

    def _begin(self, move: Began) -> None:
        try:
            leaves, leaf = self._spare or self._new_leaf()
            self._spare = None
            tree.enter(leaf.entries(), move.pid)
        except (SandboxError, OSError) as error:
            _log.warning("a command runs on in the agent's own leaf: %s", error)
            return
        command = Command(
            number=move.command,
            pid=move.pid,
            words=move.words,
            whole=move.whole,
            began_s=move.at_s,
            moved_s=time.monotonic(),
            leaf=leaf,
            ending=Ending(move.pid),
            _leaves=leaves,
        )
        self._commands[move.command] = command
        spec = ToolSpec(argv=move.words or ("command",), hint=self._hint)
        self._sandbox.controlled.began(leaf, self._sandbox.program, self._sandbox.standing, spec, spec.hint)
        self._listener.began(command)
        try:
            self._spare = self._new_leaf()  # the next command does not wait for it to be made
        except SandboxError:
            self._spare = None  # it is tried again, and said, when there is a command for it

    def _new_leaf(self) -> tuple[ExitStack, Leaf]:
        leaves = ExitStack()
        _, leaf = leaves.enter_context(self._sandbox.leaf())
        self._source.watch(leaf)
        if self._weight is not None and self._sandbox.capabilities.cpu_limit:
            leaf.weigh_cpu(self._weight)
        return leaves, leaf

    def _end(self, command: Command, status: int | None, at_s: float) -> None:
        if command.ended_s is None:
            command.ended_s, command.status = max(at_s, command.began_s), status

    def _tell(self, command: Command, *, last: bool = False) -> None:
        """Say that it has ended, once its status is known, or will not be."""
        if command.told or command.ended_s is None:
            return
        if command.status is None:
            command.status = command.ending.status()
        if command.status is not None or last or time.monotonic() > command.ended_s + _STATUS_S:
            command.told = True
            wall_s = command.ended_s - command.began_s
            used = command.leaf.usage()
            by_itself = command.status is not None and command.status < 128
            self._sandbox.controlled.ended(command.leaf, used.peak_memory_bytes, by_itself=by_itself)
            self._listener.ended(command, command.status, wall_s, used)

    def _tidy(self) -> None:
        """Leaves of commands that have ended go once they are empty."""
        for command in [each for each in self._commands.values() if each.ended_s is not None]:
            self._tell(command)
            if command.told and not command.leaf.pids():
                self._remove(command)

    def _remove(self, command: Command) -> None:
        del self._commands[command.number]
        command.ending.close()
        self._source.forget(command.leaf)
        command._leaves.close()
