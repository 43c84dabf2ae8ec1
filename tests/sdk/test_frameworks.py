"""What frameworks do when tools fail, agents are cancelled and answers are streamed is reported as it was.

Real frameworks, a real daemon whose simulated model calls tools, and a server that keeps what is reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from agentsched.sdk import agent, instrument
from agentsched.workloads.acting import ACTS, ActingMind
from agentsched.workloads.acting_daemon import acting_daemon
from tests.sdk.recording import Recording


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The base URL of a model that calls ``look_up`` once, and then is done; it asks a librarian first."""
    mind = ActingMind(1, acts=ACTS, delegate=("librarian", {"task": "What is a?"}))
    with acting_daemon(mind) as address:
        yield f"{address}/v1"


def fail(key: str) -> str:
    """Look a key up."""
    raise LookupError(key)


def of_tools(daemon: Recording) -> list[tuple[str, int]]:
    """Of each tool run, its tool and how it ended."""
    names = {event["tool_call"]: event["tool"] for event in daemon.named("ToolStarted")}
    return [(names[event["tool_call"]], event["exit_status"]) for event in daemon.named("ToolFinished")]


def parents(daemon: Recording) -> dict[str, str]:
    opened = daemon.named("ProgramOpened")
    return {of(event["program"]): of(event.get("parent", "")) for event in opened}


def of(program: str) -> str:
    return program.rpartition("-")[0]


class TestOpenAIAgents:
    @pytest.fixture(autouse=True)
    def _there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("agents")
        monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")

    async def run(self, url: str, tool: Any, **options: Any) -> Any:
        from agents import Agent, OpenAIChatCompletionsModel, Runner
        from openai import AsyncOpenAI

        from agentsched.sdk.openai_agents import reported

        async with instrument(AsyncOpenAI(base_url=url, api_key="none")) as client:
            model = OpenAIChatCompletionsModel(model="simulated", openai_client=client)
            with reported("my agent", **options) as hooks:
                return await Runner.run(Agent(name="a", tools=[tool], model=model), "go", hooks=hooks)

    async def test_a_failure_that_the_model_is_told_of(self, url: str, daemon: Recording) -> None:
        from agents import function_tool

        await self.run(url, function_tool(fail, name_override="look_up"))
        assert of_tools(daemon) == [("look_up", 1)]
        assert daemon.named("ToolStarted")[0]["tool_call"].startswith("call_")
        assert parents(daemon) == {"my-agent": ""}

    async def test_a_failure_that_ends_the_run(self, url: str, daemon: Recording) -> None:
        from agents import function_tool

        raising = function_tool(fail, name_override="look_up", failure_error_function=None)
        with pytest.raises(Exception, match="look_up"):
            await self.run(url, raising)
        assert of_tools(daemon) == [("look_up", 1)]
        assert len(daemon.named("ProgramClosed")) == 1

    async def test_a_cancelled_run(self, url: str, daemon: Recording) -> None:
        from agents import function_tool

        begun = asyncio.Event()

        async def look_up(key: str) -> str:
            """Look a key up."""
            begun.set()
            await asyncio.Event().wait()
            return ""

        task = asyncio.create_task(self.run(url, function_tool(look_up)))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert of_tools(daemon) == [("look_up", 130)]

    async def test_a_streamed_run(self, url: str, daemon: Recording) -> None:
        from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool
        from openai import AsyncOpenAI

        from agentsched.sdk.openai_agents import reported

        tool = function_tool(lambda key: key, name_override="look_up")
        async with instrument(AsyncOpenAI(base_url=url, api_key="none")) as client:
            model = OpenAIChatCompletionsModel(model="simulated", openai_client=client)
            with reported("mine", expected_calls=2) as hooks:
                streamed = Runner.run_streamed(Agent(name="a", tools=[tool], model=model), "go", hooks=hooks)
                seen = [event.type async for event in streamed.stream_events()]
        assert "raw_response_event" in seen
        assert of_tools(daemon) == [("look_up", 0)]
        assert [event["expected_calls"] for event in daemon.named("ProgramOpened")] == [2]

    async def test_own_hooks_are_told_too(self, url: str, daemon: Recording) -> None:
        from agents import RunHooks, function_tool

        told: list[str] = []

        class Mine(RunHooks[Any]):
            async def on_llm_start(self, *args: Any) -> None:
                told.append("llm start")

            async def on_tool_end(self, *args: Any) -> None:
                told.append("tool end")

        await self.run(url, function_tool(lambda key: key, name_override="look_up"), hooks=Mine())
        assert told == ["llm start", "tool end", "llm start"]


class TestLangGraph:
    @pytest.fixture(autouse=True)
    def _there(self) -> None:
        pytest.importorskip("langgraph")

    @pytest.fixture
    async def http(self) -> AsyncIterator[Any]:
        """langchain's own client is shared, and never closed."""
        from openai import DefaultAsyncHttpxClient

        async with DefaultAsyncHttpxClient() as client:
            yield client

    def graph(self, url: str, http: Any, function: Any) -> Any:
        from langchain_core.tools import tool
        from langchain_openai import ChatOpenAI
        from langgraph.graph import START, MessagesState, StateGraph
        from langgraph.prebuilt import ToolNode, tools_condition

        named = tool("look_up")(function)
        model = ChatOpenAI(model="simulated", base_url=url, api_key="none", http_async_client=http)
        bound = instrument(model).bind_tools([named])
        graph = StateGraph(MessagesState)

        async def ask(state: Any) -> Any:
            return {"messages": [await bound.ainvoke(state["messages"])]}

        graph.add_node("model", ask)
        graph.add_node("tools", ToolNode([named], handle_tool_errors=True))
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", tools_condition)
        graph.add_edge("tools", "model")
        return graph.compile()

    async def test_a_failure_that_the_model_is_told_of_and_streams(
        self, url: str, http: Any, daemon: Recording
    ) -> None:
        from agentsched.sdk.langgraph import reported

        steps = []
        with reported("mine") as callback:
            task = {"messages": [("user", "go")]}
            async for step in self.graph(url, http, fail).astream(task, {"callbacks": [callback]}):
                steps.extend(step)
        assert steps == ["model", "tools", "model"]
        assert of_tools(daemon) == [("look_up", 1)]
        assert daemon.named("ToolStarted")[0]["tool_call"].startswith("call_")

    async def test_a_cancelled_run_ends_its_tool(self, url: str, http: Any, daemon: Recording) -> None:
        from agentsched.sdk.langgraph import reported

        begun = asyncio.Event()

        async def look_up(key: str) -> str:
            """Look a key up."""
            begun.set()
            await asyncio.Event().wait()
            return ""

        async def run() -> None:
            with reported("mine") as callback:
                await self.graph(url, http, look_up).ainvoke(
                    {"messages": [("user", "go")]}, {"callbacks": [callback]}
                )

        task = asyncio.create_task(run())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert of_tools(daemon) == [("look_up", 130)]
        assert len(daemon.named("ProgramClosed")) == 1


class TestSmolagents:
    @pytest.fixture(autouse=True)
    def _there(self) -> None:
        pytest.importorskip("smolagents")

    def model(self, url: str) -> Any:
        from smolagents import OpenAIServerModel

        return instrument(OpenAIServerModel(model_id="simulated", api_base=url, api_key="none"))

    def librarian(self, url: str, function: Any = fail) -> Any:
        from smolagents import tool

        from agentsched.sdk.smolagents import ToolCallingAgent

        def look_up(key: str) -> str:
            """Look a key up.

            Args:
                key: what to look up
            """
            return str(function(key))

        return ToolCallingAgent(
            tools=[tool(look_up)],
            model=self.model(url),
            name="librarian",
            description="Looks up.",
            verbosity_level=0,
        )

    def test_a_failure_that_the_model_is_told_of(self, url: str, daemon: Recording) -> None:
        self.librarian(url).run("go")
        assert of_tools(daemon)[0] == ("look_up", 1)
        assert daemon.named("ToolStarted")[0]["tool_call"].startswith("call_")
        assert parents(daemon) == {"librarian": ""}

    def test_streamed_steps_are_of_the_program_and_nothing_between_them(
        self, url: str, daemon: Recording
    ) -> None:
        from agentsched.sdk import current_program

        for _ in self.librarian(url, str).run("go", stream=True):
            assert current_program() is None
        assert of_tools(daemon) == [("look_up", 0), ("final_answer", 0)]
        (closed,) = daemon.named("ProgramClosed")
        assert {event["program"] for event in daemon.named("ToolStarted")} == {closed["program"]}

    def test_a_managed_agent_that_code_calls_is_a_child(self, url: str, daemon: Recording) -> None:
        from agentsched.sdk.smolagents import CodeAgent

        coder = CodeAgent(
            tools=[],
            model=self.model(url),
            managed_agents=[self.librarian(url, str)],
            name="coder",
            verbosity_level=0,
        )

        @agent(name="outer")
        def run() -> Any:
            coder.run("no code comes: the interpreter is asked directly", max_steps=1)
            return coder.python_executor('librarian("What is a?")')

        run()
        assert parents(daemon)["coder"] == "outer"
        assert parents(daemon)["librarian"] == "outer"
