"""An agent of one's own, with OpenAI's client: decorators make runs programs and functions tools.

    pip install agentsched openai
    python examples/plain_python.py

It speaks to the daemon at AGENTSCHED_URL if that is set, else to a simulated model in this process.
"""

from __future__ import annotations

import json
from typing import Any

from local_daemon import MODEL, local_daemon
from openai import OpenAI

from agentsched.sdk import agent, instrument, tool, tool_call


@tool
def look_up(key: str) -> str:
    """Runs in this process; how long it takes is reported."""
    return f"the value of {key}"


@tool(isolated=True, memory="512M", cpu=1, timeout_s=60)
def count_primes(below: int) -> int:
    """Runs in a process of its own with limits of its own; what it uses is reported, too."""
    sieve = bytearray([1]) * below
    for number in range(2, int(below**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(sieve[number * number :: number]))
    return sum(sieve[2:])


TOOLS = {"look_up": look_up, "count_primes": count_primes}


def described(name: str, argument: str, kind: str) -> Any:
    parameters = {"type": "object", "properties": {argument: {"type": kind}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@agent(name="helper")
def count(client: OpenAI, task: str) -> str:
    """A sub-agent: it is called from another agent, so it is a child."""
    return converse(client, task, [described("count_primes", "below", "integer")])


@agent(name="lead")
def lead(client: OpenAI, task: str) -> str:
    """Each run of this function is one program."""
    found = converse(client, task, [described("look_up", "key", "string")])
    return found + "\n" + count(client, "How many primes are there below 100,000?")


def converse(client: OpenAI, task: str, tools: list[Any]) -> str:
    messages: list[Any] = [{"role": "user", "content": task}]
    while True:
        answer = (
            client.chat.completions.create(model=MODEL, messages=messages, tools=tools).choices[0].message
        )
        messages.append(answer.model_dump(exclude_none=True))
        for call in answer.tool_calls or []:
            with tool_call(call.id):  # the run answers this call of the model
                result = TOOLS[call.function.name](**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
        if not answer.tool_calls:
            return answer.content or ""


def main() -> None:
    with local_daemon({"look_up": {"key": "a"}, "count_primes": {"below": 100_000}}) as url:
        client = instrument(OpenAI(base_url=f"{url}/v1", api_key="none"))
        print(lead(client, "Look up a, please."))


if __name__ == "__main__":
    main()
