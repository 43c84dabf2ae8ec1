"""A wrapped agent and a real daemon: commands are reported as the tool calls that the model asked for."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from agentsched.cgroups.wrapping.endings import Ending
from agentsched.core import events as ev
from agentsched.daemon import intake
from agentsched.engines.byte_frontend import call_text
from agentsched.engines.frontend import ChatRequest
from agentsched.sdk.environments import arguments
from agentsched.sdk.environments import environment as client_environment
from tests.daemon.serving import served
from tests.wrap.conftest import MAIN, environment

AGENT = textwrap.dedent(
    """
    import json, os, subprocess, urllib.request
    messages = [{"role": "user", "content": "do it"}]
    tools = [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}]
    while True:
        body = {"model": "simulated", "messages": messages, "tools": tools}
        request = urllib.request.Request(
            os.environ["OPENAI_BASE_URL"] + "/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
        )
        said = json.load(urllib.request.urlopen(request))["choices"][0]["message"]
        messages.append(said)
        if not said.get("tool_calls"):
            break
        for call in said["tool_calls"]:
            command = json.loads(call["function"]["arguments"])["command"]
            with open(os.environ["OUTPUT"], "w+") as output:  # as Claude Code does
                subprocess.run(["bash", "-lc", command], stdout=output)
                said = open(os.environ["OUTPUT"]).read()
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": said})
    subprocess.run(["true", "of the agent's own"])
    """
)
STEPS = 'for i in 1 2 3 4 5 6; do echo "[$i/6] step"; sleep 0.3; done'
COMMANDS = ("sleep 0.3; exit 5", f"cd /tmp && {STEPS}")


def mind(request: ChatRequest) -> str:
    done = sum(message.get("role") == "assistant" for message in request.messages)
    if done:
        return "Done."
    return "".join(call_text("bash", json.dumps({"command": command})) for command in COMMANDS)


def statuses_are_told() -> bool:
    """Whether this kernel tells how a foreign process ended (Linux 6.15)."""
    process = subprocess.Popen(["sh", "-c", "exit 7"])
    ending = Ending(process.pid)
    process.wait(10)
    told = ending.status()
    ending.close()
    assert told in (7, None)
    return told is not None


@pytest.mark.cgroups
async def test_commands_are_reported_under_the_ids_that_the_model_gave(
    sensing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[Any] = []
    take = intake.take

    def listening(events: list[Any], *rest: Any) -> intake.Taken:
        posted.extend(events)
        return take(events, *rest)

    monkeypatch.setattr(intake, "take", listening)
    script = tmp_path / "agent.py"
    script.write_text(AGENT)
    async with served(mind=mind) as served_:
        words = (
            "--sensing",
            sensing,
            "--daemon",
            served_.url,
            "--program",
            "p",
            "--",
            sys.executable,
            str(script),
        )
        output = str(tmp_path / "output")
        process = await asyncio.create_subprocess_exec(*MAIN, *words, env=environment(OUTPUT=output))
        assert await asyncio.wait_for(process.wait(), 60) == 0
        asked = (await served_.ask("GET", "/agentsched/v1/tool-calls?run=p"))[1]["tool_calls"]
    started = [event for event in posted if isinstance(event, ev.ToolStarted)]
    finished = {event.tool_call: event for event in posted if isinstance(event, ev.ToolFinished)}
    assert [json.loads(each["arguments"])["command"] for each in asked] == list(COMMANDS)
    assert [event.tool_call for event in started] == [each["tool_call"] for each in asked]
    assert {event.program for event in started} == {"p"}
    assert started[0].command == "sleep"
    progressed = [event for event in posted if isinstance(event, ev.ToolProgressed)]
    shares = [event.done_fraction for event in progressed if event.done_fraction]
    assert {event.tool_call for event in progressed} <= finished.keys()
    assert shares
    assert shares == sorted(shares)
    told = 5 if sensing == "bpf" or statuses_are_told() else 0
    assert [finished[each["tool_call"]].exit_status for each in asked] == [told, 0]
    assert finished[asked[0]["tool_call"]].wall_s >= 0.25


def test_clients_are_pointed_to_the_daemon() -> None:
    told = client_environment("http://h:1/", "a b", None, {"OPENAI_API_KEY": "mine"})
    assert told["ANTHROPIC_BASE_URL"] == "http://h:1/program/a%20b"
    assert told["OPENAI_BASE_URL"] == "http://h:1/program/a%20b/v1"
    assert told["ANTHROPIC_API_KEY"] == "none"
    assert "OPENAI_API_KEY" not in told
    assert client_environment("http://h:1", "p", "key", {})["OPENAI_API_KEY"] == "key"


def test_codex_is_told_by_options_unless_it_has_a_provider() -> None:
    told = arguments(["/x/codex", "exec", "do"], "http://h:1", "p")
    assert 'model_providers.agentsched.base_url="http://h:1/program/p/v1"' in told
    assert told[-2:] == ["exec", "do"]
    for left in (["claude", "-p"], ["codex", "-c", 'model_provider="own"', "exec"]):
        assert arguments(left, "http://h:1", "p") == left
