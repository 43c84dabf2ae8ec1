"""Programs and tool calls of Python agents: the ``agent`` and ``tool`` decorators.

The running program is a context variable, so it follows ``await`` and tasks, and threads that are
started with a copied context (``asyncio.to_thread`` does that; a bare thread starts outside).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, overload

from agentsched.core.events import ProgramClosed, ProgramOpened, ToolFinished, ToolStarted
from agentsched.sdk.reporting import reporter

P = ParamSpec("P")
R = TypeVar("R")

HEADER = "x-agentsched-program"


@dataclass(frozen=True, slots=True)
class Program:
    """One run of one agent. ``parent`` is the program whose agent started this one."""

    id: str
    name: str
    parent: Program | None = None


_program: ContextVar[Program | None] = ContextVar("agentsched_program", default=None)
_tool_call: ContextVar[str | None] = ContextVar("agentsched_tool_call", default=None)


def current_program() -> Program | None:
    """The program that this code runs in, if any."""
    return _program.get()


def headers() -> dict[str, str]:
    """Request headers that tell the daemon whose call this is; empty outside a program."""
    program = _program.get()
    return {HEADER: program.id} if program else {}


@contextlib.contextmanager
def program(
    name: str, *, id: str | None = None, expected_calls: int = 0, deadline_s: float | None = None
) -> Iterator[Program]:
    """Run a block as one program; ``id`` defaults to a fresh one. What is known beforehand helps to schedule
    it: ``expected_calls`` in all (0: not known), and the seconds from now within which it should end."""
    opened = Program(id or f"{name}-{uuid.uuid4().hex[:12]}", name, _program.get())
    token = _program.set(opened)
    reporter().report(
        ProgramOpened(
            program=opened.id,
            parent=opened.parent.id if opened.parent else "",
            expected_calls=expected_calls,
            deadline_s=deadline_s,
        )
    )
    try:
        yield opened
    finally:
        _program.reset(token)
        reporter().report(ProgramClosed(program=opened.id))


@contextlib.contextmanager
def tool_call(id: str) -> Iterator[None]:
    """Say which tool call of the model the next ``tool`` function answers, by the call's id.

    Without it tool runs get ids of their own, and cannot be joined to the call that asked for them.
    """
    token = _tool_call.set(id)
    try:
        yield
    finally:
        _tool_call.reset(token)


@contextlib.contextmanager
def _reported_tool(name: str, *, cpu: bool, expected_memory_bytes: int = 0) -> Iterator[None]:
    """Report one run. ``cpu``: the block stays on this thread, so its CPU time can be told."""
    running = _program.get()
    if running is None:
        yield
        return
    call = _tool_call.get() or f"{running.id}-tool-{uuid.uuid4().hex[:12]}"
    _tool_call.set(None)  # one run answers it: tools inside this one, and later ones, get ids of their own
    report = reporter().report
    report(
        ToolStarted(
            tool_call=call, program=running.id, tool=name, expected_memory_bytes=expected_memory_bytes
        )
    )
    wall, used, status = time.perf_counter(), time.thread_time() if cpu else 0.0, 1
    try:
        yield
        status = 0
    finally:
        report(
            ToolFinished(
                tool_call=call,
                program=running.id,
                exit_status=status,
                wall_s=time.perf_counter() - wall,
                cpu_s=time.thread_time() - used if cpu else 0.0,
                peak_memory_bytes=0,
            )
        )


def _wrap(
    function: Callable[P, Any], around: Callable[[bool], contextlib.AbstractContextManager[Any]]
) -> Callable[P, Any]:
    """``function`` inside ``around(is synchronous)`` at every call."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{function.__qualname__} is a generator; wrap a function that drives it instead")
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            with around(False):
                return await function(*args, **kwargs)

        return run_async

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        with around(True):
            return function(*args, **kwargs)

    return run


@overload
def agent(function: Callable[P, R]) -> Callable[P, R]: ...
@overload
def agent(*, name: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def agent(function: Callable[..., Any] | None = None, *, name: str | None = None) -> Any:
    """Make each run of a function, sync or async, a program of its own.

    An agent that calls another agent is its parent; the two are scheduled as separate programs.
    """

    def decorate(wrapped: Callable[..., Any]) -> Callable[..., Any]:
        title = name or wrapped.__name__
        return _wrap(wrapped, lambda _sync: program(title))

    return decorate if function is None else decorate(function)


@overload
def tool(function: Callable[P, R]) -> Callable[P, R]: ...
@overload
def tool(*, name: str | None = None, hint: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def tool(function: Callable[..., Any] | None = None, *, name: str | None = None, hint: str = "") -> Any:
    """Report each run of a function, sync or async, as a tool call of the running program. ``hint``: what
    a run needs, as ``memory:2G``; raises ``SpecRefused`` (a ValueError) on what cannot be read.

    An exception counts as exit status 1 and passes through unchanged. Outside a program the
    function just runs.
    """
    expected_bytes = _memory_of(hint)

    def decorate(wrapped: Callable[..., Any]) -> Callable[..., Any]:
        title = name or wrapped.__name__
        return _wrap(
            wrapped, lambda sync: _reported_tool(title, cpu=sync, expected_memory_bytes=expected_bytes)
        )

    return decorate if function is None else decorate(function)


def _memory_of(hint: str) -> int:
    if not hint:
        return 0
    from agentsched.cgroups.hints import Hint

    return Hint.parse(hint).memory_bytes or 0
