"""What agents use: programs, tools, and clients that say whose call it is.

>>> from agentsched.sdk import agent, headers, tool
>>> @tool
... def add(a: int, b: int) -> int:
...     return a + b
>>> @agent(name="adder")
... def run() -> tuple[int, list[str]]:
...     return add(1, 2), list(headers())
>>> run()
(3, ['x-agentsched-program'])

Events go to the daemon at ``AGENTSCHED_URL``, with the API key ``AGENTSCHED_API_KEY`` where it has keys;
without a daemon the decorators do nothing else.
"""

from agentsched.sdk.clients import instrument
from agentsched.sdk.programs import Program, agent, current_program, headers, program, tool, tool_call

__all__ = ["agent", "tool", "program", "tool_call", "current_program", "headers", "instrument", "Program"]
