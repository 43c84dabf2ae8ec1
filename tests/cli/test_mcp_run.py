"""``agentsched mcp-run`` as an MCP client sees it, and what it reports: a real client, a real server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentsched.sdk import program
from agentsched.sdk.mcp import call_meta
from tests.daemon.serving import until
from tests.sdk.recording import Recording

MAIN = [sys.executable, "-c", "from agentsched.cli.main import main; main()", "mcp-run"]

SERVER = """
import asyncio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("library")

@server.tool()
def echo(text: str) -> str:
    return text

@server.tool()
def fail() -> str:
    raise ToolError("it is broken")

@server.tool()
async def count(ctx: Context) -> str:
    await ctx.report_progress(1, 4)
    return "counted"

@server.tool()
async def hang(mark: str) -> str:
    open(mark, "w").close()
    await asyncio.Event().wait()
    return ""

server.run()
"""


@pytest.fixture
def server(tmp_path: Path) -> Path:
    pytest.importorskip("mcp")
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return path


@pytest.fixture
def recording() -> Any:
    with Recording() as daemon:
        yield daemon


def connected(server: Path, *options: str, **environment: str) -> Any:
    from mcp import Client, StdioServerParameters

    command, *words = [*MAIN, *options, "--", sys.executable, str(server)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENT")}
    return Client(StdioServerParameters(command=command, args=words, env=kept | environment))


def named(daemon: Recording, kind: str) -> list[dict[str, Any]]:
    return [event for event in daemon.events if event["event"] == kind]


async def test_calls_are_reported_and_nothing_else_changes(server: Path, recording: Recording) -> None:
    long = "héllo " * 50_000
    async with connected(server, "--daemon", recording.url, "--program", "p-1") as client:
        assert (await client.call_tool("echo", {"text": long})).content[0].text == long
        assert (await client.call_tool("fail", {})).is_error
        told: list[float] = []

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            told.append(progress)

        await client.call_tool("count", {}, progress_callback=progressed)
    started, finished = named(recording, "ToolStarted"), named(recording, "ToolFinished")
    assert [(event["program"], event["tool"]) for event in started] == [
        ("p-1", "echo"),
        ("p-1", "fail"),
        ("p-1", "count"),
    ]
    assert [event["exit_status"] for event in finished] == [0, 1, 0]
    assert [event["tool_call"] for event in finished] == [event["tool_call"] for event in started]
    assert finished[0]["cpu_s"] > 0
    assert [event["done_fraction"] for event in named(recording, "ToolProgressed")] == [0.25]


async def test_the_client_says_whose_a_call_is(server: Path, recording: Recording) -> None:
    async with connected(server, AGENTSCHED_URL=recording.url, AGENTSCHED_PROGRAM="p-of-all") as client:
        with program("p", id="p-2"):
            await client.call_tool("echo", {"text": "a"}, meta=call_meta("memory:64M", tool_call="call_1"))
        await client.call_tool("echo", {"text": "a"}, meta={"claudecode/toolUseId": "toolu_1"})
    first, second = named(recording, "ToolStarted")
    assert (first["program"], first["tool_call"], first["expected_memory_bytes"]) == (
        "p-2",
        "call_1",
        64 << 20,
    )
    assert (second["program"], second["tool_call"]) == ("p-of-all", "toolu_1")


async def test_calls_of_nobodys_and_without_a_daemon_just_pass(server: Path, recording: Recording) -> None:
    for environment in ({"AGENTSCHED_URL": recording.url}, {}):
        async with connected(server, **environment) as client:
            assert (await client.call_tool("echo", {"text": "a"})).content[0].text == "a"
    assert recording.events == []


async def test_a_cancelled_call_and_one_that_the_server_took_with_it(
    server: Path, recording: Recording, tmp_path: Path
) -> None:
    async with connected(server, "--daemon", recording.url, "--program", "p") as client:
        marks = [tmp_path / "first", tmp_path / "second"]
        for mark in marks:
            call = asyncio.create_task(client.call_tool("hang", {"mark": str(mark)}))
            await until(mark.exists, "the tool runs")
            if mark is marks[0]:
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                await until(lambda: named(recording, "ToolFinished"), "the cancelled call is reported")
    await until(lambda: len(named(recording, "ToolFinished")) == 2, "the other one is reported too")
    assert [event["exit_status"] for event in named(recording, "ToolFinished")] == [130, 1]
    await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["no-such-server"], 127, "command not found: no-such-server"),
        (["sh", "-c", "exit 7"], 7, ""),
        (["--memory", "1K", "--", "true"], 2, "at least 1 MiB"),
    ],
)
def test_the_exit_status_is_the_servers(words: list[str], status: int, said: str) -> None:
    done = subprocess.run(
        [*MAIN, "--daemon", "http://127.0.0.1:9", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert said in done.stderr
