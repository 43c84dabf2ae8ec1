"""The other side of an isolated tool: the process in which its function runs."""

from __future__ import annotations

import inspect
import multiprocessing.spawn
import os
import pickle
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any

from agentsched.sdk.programs import Program, inside
from agentsched.sdk.tool_runs import FAILED

functions: dict[tuple[str, str], Callable[..., Any]] = {}
"""Of isolated tools, by module and qualified name: what is found there may have been decorated further."""

importing = False
"""Whether this process is only about to import what it is to run."""

MAIN = ("__main__", "__mp_main__")


@dataclass(frozen=True, slots=True)
class Asked:
    """One call. ``program``: id and name of the one that it is a tool of."""

    function: tuple[str, str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    program: tuple[str, str] | None


def main(call: IO[bytes], answer: str) -> None:
    """Run the call that is read, and leave ``(kind, value)`` in the file ``answer``: the ``value``, the
    ``error`` that was raised, or ``words`` about an outcome that does not pickle. Raises ``SystemExit``."""
    outcome = _outcome(call)
    try:
        data = pickle.dumps(outcome)
        # some exceptions can be written and not read: that must show here
        pickle.loads(data)
    except Exception as error:
        kind, value = outcome
        what = (
            "what it returned" if kind == "value" else f"the {type(value).__name__} that it raised ({value})"
        )
        data = pickle.dumps(("words", f"{what} cannot go to another process: {error!r}"))
    draft = f"{answer}.draft"
    with open(draft, "wb") as file:
        file.write(data)
    os.rename(draft, answer)
    raise SystemExit(0 if outcome[0] == "value" else FAILED)


def _outcome(call: IO[bytes]) -> tuple[str, Any]:
    try:
        asked, function = _found(call)
        value = _run(asked, function)
        return "value", value
    except BaseException as error:
        lines = traceback.format_exception(error)
        error.add_note("".join(["in the tool's own process:\n", *lines]).rstrip())
        return "error", error


def _found(call: IO[bytes]) -> tuple[Asked, Callable[..., Any]]:
    global importing
    importing = True
    multiprocessing.spawn.prepare(pickle.load(call))
    asked: Asked = pickle.load(call)
    module, name = asked.function
    if module not in MAIN:
        import_module(module)
    importing = False
    for place in MAIN if module in MAIN else (module,):
        if (place, name) in functions:
            return asked, functions[place, name]
    raise LookupError(f"{module} has no isolated tool {name} when it is imported by another process")


def _run(asked: Asked, function: Callable[..., Any]) -> Any:
    with inside(Program(*asked.program)) if asked.program else nullcontext():
        value = function(*asked.args, **asked.kwargs)
        if not inspect.iscoroutine(value):
            return value
        import asyncio

        return asyncio.run(value)
