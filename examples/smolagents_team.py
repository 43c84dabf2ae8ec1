"""smolagents: an agent that writes code, with a managed agent that calls tools and is a child program.

    pip install 'agentsched[smolagents]'
    python examples/smolagents_team.py

It speaks to the daemon at AGENTSCHED_URL if that is set, else to a simulated model in this process.
"""

from __future__ import annotations

from local_daemon import MODEL, local_daemon
from smolagents import OpenAIServerModel, tool

from agentsched.sdk import instrument
from agentsched.sdk.smolagents import CodeAgent, ToolCallingAgent


@tool
def look_up(key: str) -> str:
    """Look a key up.

    Args:
        key: what to look up
    """
    return f"the value of {key}"


def main() -> None:
    delegate = ("librarian", {"task": "What is a?"})
    with local_daemon({"look_up": {"key": "a"}}, delegate=delegate) as url:
        model = instrument(OpenAIServerModel(model_id=MODEL, api_base=f"{url}/v1", api_key="none"))
        librarian = ToolCallingAgent(
            tools=[look_up], model=model, name="librarian", description="Looks things up.", verbosity_level=0
        )
        lead = ToolCallingAgent(
            tools=[], model=model, name="lead", managed_agents=[librarian], verbosity_level=0
        )
        print(lead.run("What is a?"))
        coder = CodeAgent(tools=[], model=model, name="coder", verbosity_level=0)
        print(coder.run("What is the length of 'abc'?"))


if __name__ == "__main__":
    main()
