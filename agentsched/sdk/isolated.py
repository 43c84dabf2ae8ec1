"""Functions as tools, each run in a process of its own in a control group of its own.

A fresh interpreter is started there, imports the module that the function is in, and runs it. So

- the function must be at the top level of an importable module, or of the script that runs (whose own work
  then stands under ``if __name__ == "__main__":``); what it needs is imported anew, which is most of what a
  run costs;
- arguments, the value and exceptions go through ``pickle``; what the function changes in this process's
  variables is lost. What it returns is unpickled here: this keeps a tool's appetite in bounds, not its
  malice;
- what it prints comes out on this process's ``sys.stdout``, its standard error included.

What is raised: the function's own exceptions, with its traceback as a note; ``TimeoutError`` at the time
limit, ``MemoryError`` at the memory limit, ``ToolDied`` if the process ended otherwise without an answer.

The process is not forked, since a copy of a process with threads (event loops, HTTP clients, numerical
libraries) may hold their locks for ever.
"""

from __future__ import annotations

import codecs
import functools
import inspect
import multiprocessing.spawn
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import msgspec

from agentsched.cgroups import Hint, Limits, ToolResult, ToolSpec
from agentsched.sdk import isolated_child
from agentsched.sdk.isolated_child import MAIN, Asked
from agentsched.sdk.programs import current_program
from agentsched.sdk.sandboxed import arun_spec, run_spec

P = ParamSpec("P")

KEPT_OUTPUT_BYTES = 4096
_BOOT = (
    "import pickle, sys; call = open(sys.argv[1], 'rb'); sys.path[:] = pickle.load(call); "
    "from agentsched.sdk.isolated_child import main; main(call, sys.argv[2])"
)
_PREPARED = ("sys_path", "sys_argv", "orig_dir", "dir")
_MAIN = ("init_main_from_name", "init_main_from_path")


class ToolDied(RuntimeError):
    """An isolated tool's process ended without an answer: killed, crashed, or by ``os._exit``."""


def isolate(
    function: Callable[P, Any], name: str, limits: Limits, *, timeout_s: float | None = None, hint: str = ""
) -> Callable[P, Any]:
    """See the module. Raises ``TypeError`` for a function that another process cannot find, and
    ``SpecRefused`` for limits or a hint that cannot be."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{function.__qualname__} is a generator; an isolated tool returns one value")
    if "<" in function.__qualname__:
        raise TypeError(
            f"{function.__qualname__} cannot be isolated: another process must be able to import it, so "
            "define it with def at the top level of a module"
        )
    asked = Hint.parse(hint) if hint else None
    template = ToolSpec(
        argv=[sys.executable],
        tool=name,
        limits=limits,
        timeout_s=timeout_s,
        hint=asked,
        max_output_bytes=KEPT_OUTPUT_BYTES,
    )
    isolated_child.functions[function.__module__, function.__qualname__] = function
    calls = _Calls(function, template)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            with calls.prepared(args, kwargs) as (spec, answer):
                return calls.answer(answer, await arun_spec(spec, calls.printer()))

        return run_async

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        with calls.prepared(args, kwargs) as (spec, answer):
            return calls.answer(answer, run_spec(spec, calls.printer()))

    return run


class _Calls:
    """Of one function."""

    def __init__(self, function: Callable[..., Any], template: ToolSpec) -> None:
        self._function = function
        self._template = template

    @contextmanager
    def prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[ToolSpec, Path]]:
        """What to run, and where the answer will be. Raises ``TypeError`` for arguments that do not
        pickle."""
        if isolated_child.importing:
            raise RuntimeError(
                f"the isolated tool {self._template.tool} was called while its script was imported in "
                'another process: put what the script does under `if __name__ == "__main__":`'
            )
        prepared = multiprocessing.spawn.get_preparation_data(self._template.tool)
        running = current_program()
        asked = Asked(
            (self._function.__module__, self._function.__qualname__),
            args,
            kwargs,
            None if running is None else (running.id, running.name),
        )
        try:
            call = pickle.dumps(asked)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise TypeError(
                f"{self._template.tool}: its arguments cannot go to another process: {error}"
            ) from error
        with tempfile.TemporaryDirectory(prefix="agentsched-tool-") as folder:
            asked_at, answer = Path(folder, "call"), Path(folder, "answer")
            with asked_at.open("wb") as file:
                pickle.dump(prepared["sys_path"], file)
                pickle.dump(_environment(prepared, asked, call), file)
                file.write(call)
            argv = [sys.executable, "-P", "-c", _BOOT, str(asked_at), str(answer)]
            yield msgspec.structs.replace(self._template, argv=argv), answer

    def printer(self) -> Callable[[bytes], None]:
        """Gives on what the function prints."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

        def take(chunk: bytes) -> None:
            sys.stdout.write(decoder.decode(chunk))

        return take

    def answer(self, at: Path, result: ToolResult) -> Any:
        """The function's value. Raises what the module says."""
        tool, note = self._template.tool, result.feedback.note
        if at.exists():
            with at.open("rb") as file:
                kind, value = pickle.load(file)
            if kind == "value":
                return value
            if kind == "error":
                raise value
            raise ToolDied(f"{tool}: {value}")
        if result.timed_out:
            raise TimeoutError(f"{tool}: {note}")
        if result.oom_killed:
            raise MemoryError(f"{tool}: {note}")
        said = result.text.strip()
        raise ToolDied(
            f"{tool} ended without an answer: {result.reason}" + (f"; it said last:\n{said}" if said else "")
        )


def _environment(prepared: dict[str, Any], asked: Asked, call: bytes) -> dict[str, Any]:
    """What to make of the other process before it reads the call. The script that runs here is imported there
    only if the call needs it."""
    needs_main = asked.function[0] in MAIN or any(name.encode() in call for name in MAIN)
    keys = _PREPARED + (_MAIN if needs_main else ())
    return {key: prepared[key] for key in keys if key in prepared}
