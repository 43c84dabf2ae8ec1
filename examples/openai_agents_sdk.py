"""The OpenAI Agents SDK: a lead that uses another agent as a tool, which is then a child program.

    pip install 'agentsched[openai-agents]'
    python examples/openai_agents_sdk.py

It speaks to the daemon at AGENTSCHED_URL if that is set, else to a simulated model in this process.
"""

from __future__ import annotations

import asyncio

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from local_daemon import MODEL, local_daemon
from openai import AsyncOpenAI

from agentsched.sdk import instrument
from agentsched.sdk.openai_agents import agent_tool, reported


@function_tool
def look_up(key: str) -> str:
    """Look a key up."""
    return f"the value of {key}"


async def main() -> None:
    set_tracing_disabled(True)  # traces would go to the vendor
    delegate = ("ask_librarian", {"input": "What is a?"})
    with local_daemon({"look_up": {"key": "a"}}, delegate=delegate, turns=2) as url:
        async with instrument(AsyncOpenAI(base_url=f"{url}/v1", api_key="none")) as client:
            model = OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
            librarian = Agent(name="librarian", instructions="Look things up.", tools=[look_up], model=model)
            lead = Agent(
                name="lead",
                instructions="Ask the librarian, then look it up yourself.",
                tools=[agent_tool(librarian, "ask_librarian", "Asks somebody who knows."), look_up],
                model=model,
            )
            with reported("lead") as hooks:
                result = await Runner.run(lead, "What is a?", hooks=hooks)
            print(result.final_output)


if __name__ == "__main__":
    asyncio.run(main())
