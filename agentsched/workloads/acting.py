"""The mind of a simulated agent's model: whatever agent asks, it does some work with the tools that it is
offered, and then says that it is done, in the way that the agent wants it said.

It makes unmodified agents act without a real model. Its words vary as sampled ones do: two runs of one
task get equal prompts and different answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from agentsched.engines.byte_frontend import call_text
from agentsched.engines.frontend import ChatRequest

Acts = Mapping[str, tuple[dict[str, Any], ...]]

ACTS: Acts = {
    "bash": ({"command": "ls"}, {"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"}),
    "Bash": ({"command": "ls", "description": "List files"},),
    "exec_command": ({"cmd": "ls"},),
    "shell": ({"command": "ls"},),
    "look_up": ({"key": "a"},),
    "final_answer": ({"answer": "done"},),
}
"""Tools that it knows, and with which arguments it calls them. Where there are two, the second one ends
the agent's run; ``final_answer`` always does."""

_DONE = "All of it is done now."
_CODE_DONE = 'Thought: that is all.\n<code>\nfinal_answer("done")\n</code>'
_CODE_WORK = "<code>\nprint(len('abc'))\n</code>"


class ActingMind:
    """``turns``: how many answers with work in them come before the last one. ``acts``: see ``ACTS``.

    ``vary``: say it in other words each time. ``delegate``: a tool, and its arguments, that is called in
    the first answer where it is offered, as those are that start a sub-agent."""

    def __init__(
        self,
        turns: int,
        *,
        seed: int = 0,
        vary: bool = True,
        acts: Acts = ACTS,
        delegate: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        self._turns = turns
        self._random = Random(seed)
        self._vary = vary
        self._acts = acts
        self._delegate = delegate

    def __call__(self, request: ChatRequest) -> str:
        """The answer to a request."""
        done = sum(message.get("role") == "assistant" for message in request.messages)
        words = self._random.getrandbits(64) if self._vary else done
        thought = f"Thought {words:016x}: I go on with the task."
        names = [tool["function"]["name"] for tool in request.tools]
        if self._delegate and self._delegate[0] in names and done == 0:
            name, arguments = self._delegate
            return thought + call_text(name, json.dumps(arguments))
        last = done >= self._turns
        if not names:
            return self._without_tools(request, thought, last=last)
        if last and "final_answer" in names:
            return call_text("final_answer", json.dumps(self._acts["final_answer"][0]))
        known = next((name for name in names if name in self._acts and name != "final_answer"), None)
        if known is None or (last and len(self._acts[known]) == 1):
            return f"{thought} {_DONE}"
        return thought + call_text(known, json.dumps(self._acts[known][-1 if last else 0]))

    def _without_tools(self, request: ChatRequest, thought: str, *, last: bool) -> str:
        """Agents that let the model write code say so in their system prompt; others have no tools."""
        if "<code>" not in json.dumps(request.messages[:1]):
            return f"{thought} {_DONE}"
        return _CODE_DONE if last else f"{thought}\n{_CODE_WORK}"
