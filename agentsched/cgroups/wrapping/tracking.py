"""Which processes are the agent itself, and which are commands that it runs: pure logic on what happened.

A process that the agent makes is part of it until it executes something. What it executes then is a command,
unless it is the agent's own program once more (Codex is a script that runs a program of its name). All that a
command's process makes is of that command, whatever it executes.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from agentsched.cgroups.bpf.facts import Event, Executed, Exited, Forked

AGENTS = frozenset({"claude", "codex"})
"""Programs that are agents under whatever name they are started."""

GENERIC = frozenset({"node", "bun", "deno", "sh", "bash", "dash", "zsh", "fish", "env", "npx", "uv", "uvx"})
"""Programs that run others: an agent may be written in them, and so may its commands. So is Python."""


@dataclass(frozen=True, slots=True)
class Began:
    """A command began: its process, and the words that it executed; ``whole``: all of them."""

    command: int
    pid: int
    words: tuple[str, ...]
    whole: bool
    at_s: float


@dataclass(frozen=True, slots=True)
class Became:
    """A command's first process executed something else in its own place (``env``, ``setsid``)."""

    command: int
    words: tuple[str, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """A further process of a command, which may not be in its leaf yet."""

    command: int
    pid: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A command's first process ended. Others of it may go on."""

    command: int
    status: int | None
    at_s: float


Move = Began | Became | Joined | Ended


class Tracker:
    """One agent's processes. ``pid`` is the agent's, ``leaf`` the cgroup id that it runs in; ``names``:
    further programs that are the agent itself."""

    def __init__(self, pid: int, leaf: int, argv0: str, names: Collection[str] = ()) -> None:
        own = os.path.basename(argv0)
        self._names = AGENTS | set(names) | ({own} if _tells(own) else set())
        self._leaf = leaf
        self._agent = {pid}
        self._first = pid
        self._command: dict[int, int] = {}
        self._heads: dict[int, int] = {}
        self._number = 0

    def heard(self, event: Event) -> list[Move]:
        """Something happened in the agent's leaf or in one of its commands'."""
        match event:
            case Forked():
                return self._forked(event)
            case Executed():
                return self._executed(event)
            case Exited():
                return self._exited(event)
        return []

    def claim(self, pid: int, words: tuple[str, ...], at_s: float) -> list[Move]:
        """A process says of itself what it is about to become; that may have been seen already."""
        if (command := self._command.get(pid)) is not None:
            return [Became(command, words, True)] if self._heads.get(command) == pid else []
        if os.path.basename(words[0] if words else "") in self._names:
            return []
        return [self._begin(pid, words, True, at_s)]

    def _forked(self, event: Forked) -> list[Move]:
        if (command := self._command.get(event.parent)) is not None:
            self._command[event.pid] = command
            return [Joined(command, event.pid)] if event.leaf == self._leaf else []
        if event.leaf == self._leaf and event.pid not in self._command:
            # of the agent, or of a parent that was missed or is gone: the agent's leaf has no others
            self._agent.add(event.pid)
        return []

    def _executed(self, event: Executed) -> list[Move]:
        if (command := self._command.get(event.pid)) is not None:
            if self._heads.get(command) == event.pid:
                return [Became(command, event.words, event.whole)]
            return []
        name = os.path.basename(event.words[0]) if event.words else ""
        if event.pid == self._first or name in self._names:
            self._agent.add(event.pid)
            return []
        return [self._begin(event.pid, event.words, event.whole, event.at_s)]

    def _begin(self, pid: int, words: tuple[str, ...], whole: bool, at_s: float) -> Began:
        self._number += 1
        self._agent.discard(pid)
        self._command[pid] = self._number
        self._heads[self._number] = pid
        return Began(self._number, pid, words, whole, at_s)

    def _exited(self, event: Exited) -> list[Move]:
        self._agent.discard(event.pid)
        command = self._command.pop(event.pid, None)
        if command is None or self._heads.get(command) != event.pid:
            return []
        del self._heads[command]
        return [Ended(command, event.status, event.at_s)]


def _tells(name: str) -> bool:
    return name not in GENERIC and not name.startswith(("python", "pypy"))
