"""LangGraph, and what else runs tools by langchain: each run of a graph a program, its tools reported.

    with reported("researcher") as callback:
        graph.invoke({"messages": [...]}, {"callbacks": [callback]})

The same around ``ainvoke``, ``stream`` and ``astream``. Callbacks tell of tools; calls say whose they are if
the model is instrumented (``sdk.instrument(ChatOpenAI(...))``). A node or a tool that runs a graph of its own
becomes a child by ``sdk.agent`` on that function: callbacks are inherited, and its tools count as the
child's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler

from agentsched.sdk.programs import begin_tool, program
from agentsched.sdk.tool_runs import FAILED, INTERRUPTED, Run, status_of


class ToolReports(BaseCallbackHandler):
    """Reports tools as those of the program that runs. May serve several runs at once."""

    # else asynchronous runs call it in a thread, and an end may overtake its beginning
    run_inline = True

    def __init__(self) -> None:
        self._running: dict[UUID, Run] = {}

    def on_tool_start(self, serialized: dict[str, Any], input_str: str, *, run_id: UUID, **told: Any) -> None:
        name = (serialized or {}).get("name") or told.get("name") or "tool"
        run = begin_tool(name, tool_call=told.get("tool_call_id") or "")
        if run is not None:
            self._running[run_id] = run

    def on_tool_end(self, output: Any, *, run_id: UUID, **told: Any) -> None:
        # a tool that handles its errors answers with a message that says so
        self._end(run_id, FAILED if getattr(output, "status", "") == "error" else 0)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **told: Any) -> None:
        self._end(run_id, status_of(error))

    def close(self) -> None:
        """Of tools that were cancelled no callback tells the end."""
        for run_id in list(self._running):
            self._end(run_id, INTERRUPTED)

    def _end(self, run_id: UUID, exit_status: int) -> None:
        run = self._running.pop(run_id, None)
        if run is not None:
            run.end(exit_status)


@contextmanager
def reported(
    name: str, *, id: str | None = None, expected_calls: int = 0, deadline_s: float | None = None
) -> Iterator[ToolReports]:
    """A program around one run of a graph, and the callback for it. For the rest see ``sdk.program``."""
    with program(name, id=id, expected_calls=expected_calls, deadline_s=deadline_s):
        reports = ToolReports()
        try:
            yield reports
        finally:
            reports.close()
