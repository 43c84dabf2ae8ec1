"""Sandboxes as callers use them, and the one runtime instance a process has behind them."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from agentsched.cgroups import detect, names
from agentsched.cgroups.contract import (
    Capabilities,
    Isolation,
    Leaf,
    SandboxError,
    SpecRefused,
    ToolResult,
    ToolSpec,
)
from agentsched.cgroups.controlled import Controlled, Standing
from agentsched.cgroups.counts import Counts
from agentsched.cgroups.guard import Guard
from agentsched.cgroups.none import PlainBackend
from agentsched.cgroups.outputs import OnOutput
from agentsched.cgroups.spawn import OnStart, run_tool, run_tool_sync

if TYPE_CHECKING:
    from agentsched.cgroups.isolation import Isolated
    from agentsched.cgroups.watching import OnProgress


class Runtime:
    """A backend and its watchdog. One a process and backend, shared by all sandboxes; it lives to
    the end of the process, since a watchdog costs more to start than to keep."""

    _shared: ClassVar[dict[str, Runtime]] = {}
    _owner: ClassVar[int] = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, wanted: str) -> None:
        self.closed = False
        self.instance = names.new_instance()
        self.guard = Guard(self.instance)
        self.backend, self.refused = detect.choose(self.instance, self.guard, wanted)
        if sys.platform == "linux":
            mark = self.backend.mark if isinstance(self.backend, PlainBackend) else ""
            self.guard.watch(self.backend.roots(), mark)
        self.controlled = Controlled(self.backend.capabilities)
        self._say_what_is_lost(wanted)

    def _say_what_is_lost(self, wanted: str) -> None:
        can = self.backend.capabilities
        if can.memory_limit or wanted != "auto":
            return
        import logging  # most processes have nothing to say

        why = "; ".join(f"{name}: {reason}" for name, reason in self.refused)
        logging.getLogger(__name__).warning(
            "tool calls run on the %s backend (%s). Lost: %s.", can.backend, why, "; ".join(can.lost)
        )

    @classmethod
    def shared(cls, wanted: str) -> Runtime:
        """This process's runtime for a backend. Raises as ``detect.choose``."""
        with cls._lock:
            if cls._owner != os.getpid():
                # after a fork these belong to the parent, and so do their leaves and watchdogs
                for runtime in cls._shared.values():
                    runtime.guard.forsake()
                    runtime.controlled.forsake()
                cls._shared.clear()
                cls._owner = os.getpid()
            if wanted not in cls._shared:
                cls._shared[wanted] = cls(wanted)
            return cls._shared[wanted]

    @classmethod
    def close_all(cls, *, wait: bool = True) -> None:
        """Kill and remove everything that this process has in sandboxes, and let the watchdogs go.
        Sandboxes that are open become unusable; new ones can be opened. Idempotent."""
        with cls._lock:
            if cls._owner != os.getpid():
                return
            runtimes = list(cls._shared.values())
            cls._shared.clear()
        for runtime in runtimes:
            runtime.closed = True
            try:
                runtime.backend.close()
            finally:
                runtime.controlled.close()
                runtime.guard.close(wait=wait)


def _at_exit() -> None:
    Runtime.close_all(wait=False)


atexit.register(_at_exit)


class Sandbox:
    """Where the tool calls of one program run, each in a leaf of its own. Thread-safe."""

    _numbers: ClassVar[itertools.count[int]] = itertools.count(1)

    def __init__(
        self, runtime: Runtime, program: str, standing: Standing, isolated: Isolated | None = None
    ) -> None:
        self.program = program
        self.isolated = isolated
        """Where its calls run, if the host's disk is kept from them."""
        self.standing = standing
        """What its calls count for, beside others of the host."""
        self._runtime = runtime
        self._leaves: dict[str, Leaf] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.counts = Counts()
        """What its commands counted (tests, as a rule) when they ran before."""

    @classmethod
    def open(
        cls,
        program: str = "",
        *,
        backend: str = "auto",
        weight: float | None = None,
        priority: int | None = None,
        isolation: Isolation | None = None,
    ) -> Sandbox:
        """A sandbox on the best backend there is, down to a plain process on any system.

        ``weight`` (0.001 to 1000, 1 is usual) and ``priority`` (0 to 9): what its calls count for where
        memory or CPU time is short, as those of its tenant do in the daemon. None: nothing is said.

        ``isolation``: its calls have a view of the disk of their own, from now on until it is closed; where
        that cannot be had ``HostRefused`` says what is missing.

        ``backend`` (or AGENTSCHED_BACKEND) asks for ``v2``, ``hybrid``, ``v2-partial`` or ``none``
        instead; ``HostRefused`` says why it cannot be had, ``SpecRefused`` that there is none such.
        """
        wanted = os.environ.get("AGENTSCHED_BACKEND", "auto") if backend == "auto" else backend
        if wanted not in detect.NAMES:
            raise SpecRefused(f"backend {wanted!r} is not one of {', '.join(detect.NAMES)}")
        standing = Standing.checked(weight, priority)
        name = program or f"program-{os.getpid()}-{next(cls._numbers)}"
        runtime = Runtime.shared(wanted)
        if isolation is None:
            return cls(runtime, name, standing)
        from agentsched.cgroups.isolation import Isolated

        return cls(runtime, name, standing, Isolated(isolation))

    @property
    def capabilities(self) -> Capabilities:
        """What the backend can do here, and what is lost."""
        return self._runtime.backend.capabilities

    @property
    def controlled(self) -> Controlled:
        """This process's link to the host's controller."""
        return self._runtime.controlled

    @property
    def refused(self) -> tuple[tuple[str, str], ...]:
        """Better backends, each with the reason why it is not available."""
        return self._runtime.refused

    @property
    def watchdog_pid(self) -> int | None:
        """The process that cleans up should this one die; None on systems other than Linux."""
        return self._runtime.guard.pid

    @property
    def closed(self) -> bool:
        """Whether it was closed, or the whole runtime was."""
        return self._closed or self._runtime.closed

    def run(
        self,
        spec: ToolSpec,
        on_output: OnOutput | None = None,
        on_start: OnStart | None = None,
        on_progress: OnProgress | None = None,
    ) -> ToolResult:
        """Run a tool call; see ``spawn.run_tool_sync``."""
        return run_tool_sync(self, spec, on_output, on_start, on_progress)

    async def arun(
        self,
        spec: ToolSpec,
        on_output: OnOutput | None = None,
        on_start: OnStart | None = None,
        on_progress: OnProgress | None = None,
    ) -> ToolResult:
        """Run a tool call; see ``spawn.run_tool``."""
        return await run_tool(self, spec, on_output, on_start, on_progress)

    def leaves(self) -> dict[str, Leaf]:
        """Leaves of the tool calls that run now."""
        with self._lock:
            return dict(self._leaves)

    @contextmanager
    def leaf(self, tool_call: str = "") -> Iterator[tuple[str, Leaf]]:
        """A leaf for one tool call, and its id; killed and removed at the end."""
        tool_call = tool_call or f"tool-{next(self._numbers)}"
        self._runtime.guard.check()
        with self._lock:
            if self.closed:
                raise SandboxError(f"the sandbox of {self.program} is closed")
            leaf = self._runtime.backend.create(self.program, tool_call)
            key = tool_call
            while key in self._leaves:
                key += "'"
            self._leaves[key] = leaf
        try:
            yield tool_call, leaf
        finally:
            try:
                self.controlled.ended(leaf)
                leaf.remove()
            finally:
                with self._lock:
                    self._leaves.pop(key, None)

    def close(self) -> None:
        """Kill and remove what runs, and forget the program. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            leaves = list(self._leaves.values())
        for leaf in leaves:
            leaf.remove()
        if self.isolated is not None:
            self.isolated.close()
        self._runtime.backend.close_program(self.program)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Sandbox:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
