"""The OpenAI Agents SDK: each run a program, its tools reported, agents used as tools its children.

    with reported("researcher") as hooks:
        result = await Runner.run(agent, "find out", hooks=hooks)

Hooks tell of tools (``RunHooks``); calls say whose they are if the model's client is instrumented
(``sdk.instrument``). A handoff stays in its program: one conversation goes on with another agent. An agent
that is to be a program of its own goes in as ``agent_tool(agent, ...)`` in the place of
``agent.as_tool(...)``.

What a hook does not learn: whether a tool failed whose own ``failure_error_function`` made a text of it,
unless tracing is on. Such a tool counts as ended well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agents import Agent, FunctionTool, RunHooks, default_tool_error_function
from agents.tracing import get_current_span

from agentsched.sdk.programs import begin_tool, program
from agentsched.sdk.tool_runs import FAILED, INTERRUPTED, Run


class ReportingHooks(RunHooks[Any]):
    """Reports tools as those of the program that runs. ``then``: hooks of one's own, which are told all too.
    May serve several runs at once."""

    def __init__(self, then: RunHooks[Any] | None = None) -> None:
        self._then: RunHooks[Any] = then or RunHooks()
        self._running: dict[str, Run] = {}

    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        call = getattr(context, "tool_call_id", "")
        if (run := begin_tool(tool.name, tool_call=call)) is not None:
            self._running[run.tool_call if call else tool.name] = run
        await self._then.on_tool_start(context, agent, tool)

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        run = self._running.pop(getattr(context, "tool_call_id", "") or tool.name, None)
        if run is not None:
            run.end(FAILED if _failed(context, result) else 0)
        await self._then.on_tool_end(context, agent, tool, result)

    async def on_llm_start(self, *told: Any) -> None:
        await self._then.on_llm_start(*told)

    async def on_llm_end(self, *told: Any) -> None:
        await self._then.on_llm_end(*told)

    async def on_agent_start(self, *told: Any) -> None:
        await self._then.on_agent_start(*told)

    async def on_agent_end(self, *told: Any) -> None:
        await self._then.on_agent_end(*told)

    async def on_handoff(self, *told: Any) -> None:
        await self._then.on_handoff(*told)

    def close(self, program: str, exit_status: int) -> None:
        """The program is over: of tools that raised or were cancelled no hook tells the end."""
        for key, run in list(self._running.items()):
            if run.program == program:
                self._running.pop(key).end(exit_status)


@contextmanager
def reported(
    name: str,
    *,
    hooks: RunHooks[Any] | None = None,
    id: str | None = None,
    expected_calls: int = 0,
    deadline_s: float | None = None,
) -> Iterator[ReportingHooks]:
    """A program around one run (``Runner.run``, ``run_sync``, or ``run_streamed`` with the loop over its
    events), and the hooks for it, which tell ``hooks`` too. For the rest see ``sdk.program``."""
    with program(name, id=id, expected_calls=expected_calls, deadline_s=deadline_s) as opened:
        reporting = ReportingHooks(hooks)
        status = FAILED
        try:
            yield reporting
        except BaseException as error:
            status = FAILED if isinstance(error, Exception) else INTERRUPTED
            raise
        finally:
            reporting.close(opened.id, status)


def agent_tool(
    agent: Agent[Any], tool_name: str | None, tool_description: str | None, **options: Any
) -> FunctionTool:
    """``agent.as_tool`` with the same options, whose runs are children of the program that calls it."""
    hooks = ReportingHooks(options.pop("hooks", None))
    tool = agent.as_tool(tool_name, tool_description, hooks=hooks, **options)
    invoke: Callable[[Any, str], Awaitable[Any]] = tool.on_invoke_tool

    async def in_a_child(context: Any, arguments: str) -> Any:
        with program(agent.name) as child:
            try:
                return await invoke(context, arguments)
            finally:
                hooks.close(child.id, FAILED)

    tool.on_invoke_tool = in_a_child
    return tool


def _failed(context: Any, result: Any) -> bool:
    span = get_current_span()
    if span is not None and span.error is not None:
        return True
    return bool(result == default_tool_error_function(context, Exception()))
