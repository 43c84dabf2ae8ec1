"""smolagents: each run of an agent a program, its tools reported, managed agents its children.

    from agentsched.sdk.smolagents import CodeAgent, ToolCallingAgent

in the place of those of smolagents, and ``sdk.instrument(OpenAIServerModel(...))`` so that calls say whose
they are. ``ToolCallingAgent`` reports each tool, with the id of the model's call. Of ``CodeAgent`` the code
that the model wrote is the tool, ``python_interpreter``: what the agent waits for is the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextvars import Context, copy_context
from typing import Any

import smolagents
from smolagents.local_python_executor import LocalPythonExecutor, PythonExecutor

from agentsched.sdk.programs import program, tool_run

CODE = "python_interpreter"


class _Program:
    """What both agents have in common: a run is a program."""

    def run(self, task: str, stream: bool = False, *more: Any, **options: Any) -> Any:
        """As smolagents' own. With ``stream`` the program lasts until the steps are all taken."""
        title = getattr(self, "name", None) or type(self).__name__
        running: Callable[..., Any] = super().run  # type: ignore[misc]
        if stream:
            return _streamed(title, lambda: running(task, True, *more, **options))
        with program(title):
            return running(task, False, *more, **options)


def _streamed(title: str, run: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Steps are made when they are asked for, so each is made in a context in which the program runs."""
    context = copy_context()
    around = program(title)
    context.run(around.__enter__)
    try:
        steps = context.run(run)
        yield from iter(lambda: context.run(next, steps, _END), _END)
    finally:
        context.run(around.__exit__, None, None, None)


_END = object()


class ToolCallingAgent(_Program, smolagents.ToolCallingAgent):
    """smolagents' agent of that name, reported."""

    def process_tool_calls(self, chat_message: Any, memory_step: Any) -> Generator[Any]:
        """As smolagents' own; keeps which ids the calls have that are executed next."""
        self._asked: dict[tuple[str, str], list[str]] = {}
        for call in chat_message.tool_calls:
            key = call.function.name, repr(call.function.arguments or {})
            self._asked.setdefault(key, []).append(call.id)
        yield from super().process_tool_calls(chat_message, memory_step)

    def execute_tool_call(self, tool_name: str, arguments: Any) -> Any:
        """As smolagents' own."""
        ids = self._asked.get((tool_name, repr(arguments)), [])
        with tool_run(tool_name, tool_call=ids.pop(0) if ids else ""):
            return super().execute_tool_call(tool_name, arguments)


class CodeAgent(_Program, smolagents.CodeAgent):
    """smolagents' agent of that name, reported."""

    python_executor: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.python_executor = ReportedExecutor(self.python_executor)


class ReportedExecutor(PythonExecutor):
    """Reports what another executor runs. The local one runs code in a thread of its own: tools and managed
    agents that it calls from there are put back into the program that they belong to."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._context: Context = copy_context()

    def __call__(self, code_action: str) -> Any:
        with tool_run(CODE):
            self._context = copy_context()
            return self._executor(code_action)

    def send_tools(self, tools: dict[str, Any]) -> None:
        if isinstance(self._executor, LocalPythonExecutor):
            tools = {name: self._put_back(tool) for name, tool in tools.items()}
        self._executor.send_tools(tools)

    def send_variables(self, variables: dict[str, Any]) -> None:
        self._executor.send_variables(variables)

    def _put_back(self, tool: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._context.copy().run(tool, *args, **kwargs)

        return call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)
