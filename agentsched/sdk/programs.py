"""Programs and tool calls of Python agents: the ``agent`` and ``tool`` decorators.

The running program is a context variable, so it follows ``await`` and tasks, and threads that are
started with a copied context (``asyncio.to_thread`` does that; a bare thread starts outside).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from agentsched.core.events import ProgramClosed, ProgramOpened
from agentsched.sdk.reporting import Mark, reporter
from agentsched.sdk.tool_runs import Run, status_of

if TYPE_CHECKING:
    from agentsched.cgroups import Isolation, Sandbox

P = ParamSpec("P")
R = TypeVar("R")

HEADER = "x-agentsched-program"
ANNOUNCED_WITHIN_S = 0.5
MOST_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class Program:
    """One run of one agent. ``parent`` is the program whose agent started this one. ``announced``: where its
    calls must not come before what was said of it; set once that was sent. ``sandbox``: where its commands
    run, if they are kept from the disk."""

    id: str
    name: str
    parent: Program | None = None
    announced: Mark | None = field(default=None, compare=False, repr=False)
    sandbox: Sandbox | None = field(default=None, compare=False, repr=False)


_program: ContextVar[Program | None] = ContextVar("agentsched_program", default=None)
_answered: ContextVar[list[str]] = ContextVar("agentsched_tool_call")
"""The id of the call of the model that the next tool run answers: whoever is first takes it out of the list,
which tasks that begin meanwhile share."""


def current_program() -> Program | None:
    """The program that this code runs in, if any."""
    return _program.get()


def headers() -> dict[str, str]:
    """Request headers that tell the daemon whose call this is; empty outside a program.

    A program that has a parent, or told what it expects, must be known by that before its first call comes:
    for this, its first ``headers`` wait some milliseconds, half a second at most.
    """
    program = _program.get()
    if program is None:
        return {}
    if program.announced is not None:
        program.announced.wait(ANNOUNCED_WITHIN_S)
    return {HEADER: program.id}


@functools.cache
def _in_headers(name: str) -> str:
    """Names of agents are free text; ids travel in headers and logs."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:MOST_NAME_CHARS] or "program"


@contextlib.contextmanager
def program(
    name: str,
    *,
    id: str | None = None,
    expected_calls: int = 0,
    deadline_s: float | None = None,
    isolation: Isolation | None = None,
) -> Iterator[Program]:
    """Run a block as one program, also around ``await``; ``id`` defaults to a fresh one. What is known
    beforehand helps to schedule it: ``expected_calls`` in all (0: not known), and the seconds from now
    within which it should end. Raises ``ValueError`` for what cannot be expected.

    ``isolation``: what its commands (``run_command``) write is kept apart, bounded, and gone with the
    program. Raises ``agentsched.cgroups.HostRefused`` where that cannot be had."""
    identity = id or f"{_in_headers(name)}-{uuid.uuid4().hex[:12]}"
    if isolation is None:
        with _opened(name, identity, expected_calls, deadline_s, None) as opened:
            yield opened
        return
    from agentsched.cgroups import Sandbox

    with (
        Sandbox.open(identity, isolation=isolation) as sandbox,
        _opened(name, identity, expected_calls, deadline_s, sandbox) as opened,
    ):
        yield opened


@contextlib.contextmanager
def _opened(
    name: str, identity: str, expected_calls: int, deadline_s: float | None, sandbox: Sandbox | None
) -> Iterator[Program]:
    parent, daemon = _program.get(), reporter()
    daemon.report(
        ProgramOpened(
            program=identity,
            parent=parent.id if parent else "",
            expected_calls=expected_calls,
            deadline_s=deadline_s,
        )
    )
    says_more = parent or expected_calls or deadline_s is not None
    opened = Program(identity, name, parent, daemon.mark() if says_more else None, sandbox)
    token = _program.set(opened)
    try:
        yield opened
    finally:
        _program.reset(token)
        daemon.report(ProgramClosed(program=identity))


@contextlib.contextmanager
def inside(opened: Program) -> Iterator[None]:
    """Run a block in a program that was opened elsewhere, and is closed there."""
    token = _program.set(opened)
    try:
        yield
    finally:
        _program.reset(token)


@contextlib.contextmanager
def tool_call(id: str) -> Iterator[None]:
    """Say which tool call of the model the next ``tool`` function answers, by the call's id.

    Without it tool runs get ids of their own, and cannot be joined to the call that asked for them.
    """
    token = _answered.set([id])
    try:
        yield
    finally:
        _answered.reset(token)


def next_tool_call(running: Program) -> str:
    """The id of the run that begins now: the one that was said, once, else one of its own."""
    said = _answered.get([])
    return said.pop() if said else f"{running.id}-tool-{uuid.uuid4().hex[:12]}"


def begin_tool(name: str, *, tool_call: str = "", expected_memory_bytes: int = 0) -> Run | None:
    """A tool of the running program begins; its ``end`` is to be told. For hooks of frameworks, which learn
    of begin and end apart; all others take ``tool_run``. None: there is no program, or nobody to report
    to."""
    running, daemon = _program.get(), reporter()
    if running is None or not daemon.heard():
        return None
    call = tool_call or next_tool_call(running)
    return Run(daemon, running.id, call, name, expected_memory_bytes=expected_memory_bytes)


@contextlib.contextmanager
def tool_run(name: str, *, tool_call: str = "", hint: str = "") -> Iterator[None]:
    """Report a block, also around ``await``, as a tool call of the running program. ``tool_call``: the id of
    the model's call that it answers; ``hint``: as in ``tool``."""
    run = begin_tool(name, tool_call=tool_call, expected_memory_bytes=_memory_of(hint))
    try:
        yield
    except BaseException as error:
        if run is not None:
            run.end(status_of(error))
        raise
    if run is not None:
        run.end(0)


@contextlib.contextmanager
def _reported(name: str, *, expected_memory_bytes: int) -> Iterator[None]:
    """``tool_run`` of a function that stays on this thread, so that its CPU time can be told."""
    run = begin_tool(name, expected_memory_bytes=expected_memory_bytes)
    if run is None:
        yield
        return
    wall_s, cpu_s = time.perf_counter(), time.thread_time()
    failed: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failed = error
        raise
    finally:
        run.end(status_of(failed), wall_s=time.perf_counter() - wall_s, cpu_s=time.thread_time() - cpu_s)


Around = Callable[[], contextlib.AbstractContextManager[Any]]


def _wrap(function: Callable[P, Any], sync: Around, asynchronous: Around | None = None) -> Callable[P, Any]:
    """``function`` inside ``sync()`` at every call, or inside ``asynchronous()`` if it is a coroutine
    function."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"{function.__qualname__} is a generator; wrap a function that drives it, or put "
            "`with program(...)` or `with tool_run(...)` around the loop over it"
        )
    if inspect.iscoroutinefunction(function):
        around = asynchronous or sync

        @functools.wraps(function)
        async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            with around():
                return await function(*args, **kwargs)

        return run_async

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        with sync():
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
        return _wrap(wrapped, lambda: program(title))

    return decorate if function is None else decorate(function)


@overload
def tool(function: Callable[P, R]) -> Callable[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    hint: str = "",
    isolated: bool = False,
    memory: int | str | None = None,
    cpu: float | None = None,
    timeout_s: float | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    hint: str = "",
    isolated: bool = False,
    memory: int | str | None = None,
    cpu: float | None = None,
    timeout_s: float | None = None,
) -> Any:
    """Report each run of a function, sync or async, as a tool call of the running program. ``hint``: what
    a run needs, as ``memory:2G``; raises ``SpecRefused`` (a ValueError) on what cannot be read.

    An exception counts as exit status 1, a cancellation as 130, and both pass through unchanged. Outside
    a program the function just runs.

    ``isolated``: each run is a process of its own in a control group of its own, with at most ``memory``
    (bytes, or text as ``2G``), ``cpu`` cores and ``timeout_s`` seconds; ``agentsched.sdk.isolated`` says what
    the function must be for that, and what is raised.
    """
    if not isolated and (memory, cpu, timeout_s) != (None, None, None):
        raise TypeError("memory, cpu and timeout_s are limits of an isolated tool: add isolated=True")
    expected_bytes = _memory_of(hint)

    def decorate(wrapped: Callable[..., Any]) -> Callable[..., Any]:
        title = name or wrapped.__name__
        if isolated:
            from agentsched.sdk.isolated import isolate
            from agentsched.sdk.sandboxed import limits

            return isolate(wrapped, title, limits(memory, cpu), timeout_s=timeout_s, hint=hint)
        return _wrap(
            wrapped,
            lambda: _reported(title, expected_memory_bytes=expected_bytes),
            lambda: tool_run(title, hint=hint),
        )

    return decorate if function is None else decorate(function)


@functools.cache
def _memory_of(hint: str) -> int:
    if not hint:
        return 0
    from agentsched.cgroups.hints import Hint

    return Hint.parse(hint).memory_bytes or 0
