"""LangGraph: a graph whose tools are reported, and a node that runs a graph of its own as a child program.

    pip install 'agentsched[langgraph]'
    python examples/langgraph_agents.py

It speaks to the daemon at AGENTSCHED_URL if that is set, else to a simulated model in this process.
"""

from __future__ import annotations

from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from local_daemon import MODEL, local_daemon

from agentsched.sdk import agent, instrument
from agentsched.sdk.langgraph import reported


@tool
def look_up(key: str) -> str:
    """Look a key up."""
    return f"the value of {key}"


def tool_agent(model: Any) -> Any:
    """A graph that lets the model call tools until it has an answer."""
    graph = StateGraph(MessagesState)
    bound = model.bind_tools([look_up])
    graph.add_node("model", lambda state: {"messages": [bound.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([look_up]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()


def team(model: Any) -> Any:
    """A graph of two nodes: one asks a sub-agent, the next one goes on by itself."""
    worker = tool_agent(model)

    @agent(name="librarian")
    def librarian(state: MessagesState) -> dict[str, Any]:
        answer = worker.invoke({"messages": [("user", "What is a?")]})
        return {"messages": [("user", f"The librarian says: {answer['messages'][-1].content}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("librarian", librarian)
    graph.add_node("lead", worker)
    graph.add_edge(START, "librarian")
    graph.add_edge("librarian", "lead")
    graph.add_edge("lead", END)
    return graph.compile()


def main() -> None:
    with local_daemon({"look_up": {"key": "a"}}) as url:
        model = instrument(ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none"))
        with reported("lead") as callback:
            answer = team(model).invoke({"messages": [("user", "What is a?")]}, {"callbacks": [callback]})
        print(answer["messages"][-1].content)


if __name__ == "__main__":
    main()
