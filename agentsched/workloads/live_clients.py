"""Real agent clients, unmodified, as drivers: each runs one task against a gateway, once.

A run is told who it is by what the client's own configuration lets it say on the wire: headers, fields
of the body, a path in the base URL. What is sent under ``TRUTH_HEADER`` is for whoever measures.
The packages are those of the extra ``clients``; Claude Code and Codex come from npm, if they are there.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRUTH_HEADER = "x-truth"
MODEL = "simulated"
TASK = "Look around, then say what you found."
_PROMPT = "You are a careful agent. " * 20
_TIMEOUT_S = 300.0
_INHERITED = ("PATH", "PYTHONPATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a client. ``url`` is the base without ``/v1``; ``body`` are fields beside the API's own,
    for clients that can send such. ``prefix``: words before the command of clients that are commands."""

    name: str
    url: str
    folder: Path
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()

    @property
    def all_headers(self) -> dict[str, str]:
        return self.headers | {TRUTH_HEADER: self.name}


Driver = Callable[[Run], None]


def openai_agents_chat(run: Run) -> None:
    from agents import OpenAIChatCompletionsModel

    _openai_agents(run, OpenAIChatCompletionsModel)


def openai_agents_responses(run: Run) -> None:
    from agents import OpenAIResponsesModel

    _openai_agents(run, OpenAIResponsesModel)


def _openai_agents(run: Run, model: Any) -> None:
    from agents import Agent, ModelSettings, Runner, function_tool
    from openai import AsyncOpenAI

    def look_up(key: str) -> str:
        """Look a key up."""
        return f"the value of {key}"

    async def work() -> None:
        async with AsyncOpenAI(base_url=f"{run.url}/v1", api_key="none") as client:
            agent = Agent(
                name="agent",
                instructions=_PROMPT,
                tools=[function_tool(look_up)],
                model=model(model=MODEL, openai_client=client),
                model_settings=ModelSettings(extra_headers=run.all_headers, extra_body=run.body),
            )
            await Runner.run(agent, TASK, max_turns=50)

    asyncio.run(work())


def langgraph(run: Run) -> None:
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import create_react_agent

    def look_up(key: str) -> str:
        """Look a key up."""
        return f"the value of {key}"

    model = ChatOpenAI(
        model=MODEL,
        base_url=f"{run.url}/v1",
        api_key="none",
        default_headers=run.all_headers,
        extra_body=run.body or None,
    )
    agent = create_react_agent(model, [look_up], prompt=_PROMPT)
    agent.invoke({"messages": [("user", TASK)]}, {"recursion_limit": 100})


def smolagents_code(run: Run) -> None:
    from smolagents import CodeAgent

    CodeAgent(tools=[], model=_smolagents_model(run), verbosity_level=0).run(TASK)


def smolagents_tools(run: Run) -> None:
    from smolagents import ToolCallingAgent, tool

    def look_up(key: str) -> str:
        """Look a key up.

        Args:
            key: what to look up
        """
        return f"the value of {key}"

    ToolCallingAgent(tools=[tool(look_up)], model=_smolagents_model(run), verbosity_level=0).run(TASK)


def _smolagents_model(run: Run) -> Any:
    from smolagents import OpenAIServerModel

    return OpenAIServerModel(
        model_id=MODEL,
        api_base=f"{run.url}/v1",
        api_key="none",
        client_kwargs={"default_headers": run.all_headers},
        extra_body=run.body or None,
    )


def mini_swe_agent(run: Run) -> None:
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.config import get_config_from_spec
    from minisweagent.environments.local import LocalEnvironment
    from minisweagent.models.litellm_model import LitellmModel

    config = get_config_from_spec("mini.yaml")
    kwargs = {"api_base": f"{run.url}/v1", "api_key": "none", "extra_headers": run.all_headers}
    model = LitellmModel(
        model_name=f"openai/{MODEL}",
        model_kwargs=kwargs | ({"extra_body": run.body} if run.body else {}),
        cost_tracking="ignore_errors",
        observation_template=config["model"]["observation_template"],
        format_error_template=config["model"]["format_error_template"],
    )
    settings = {name: config["agent"][name] for name in ("system_template", "instance_template")}
    environment = LocalEnvironment(cwd=str(run.folder))
    DefaultAgent(model, environment, **settings).run(TASK)


PYTHON_CLIENTS: dict[str, Driver] = {
    "mini-swe-agent": mini_swe_agent,
    "openai-agents (chat)": openai_agents_chat,
    "openai-agents (responses)": openai_agents_responses,
    "langgraph": langgraph,
    "smolagents CodeAgent": smolagents_code,
    "smolagents ToolCallingAgent": smolagents_tools,
}


def node_clients(binaries: Path) -> dict[str, Driver]:
    """Claude Code and Codex, as far as ``binaries`` (``node_modules/.bin``) has them."""
    known = {"claude": ("Claude Code", _claude_code), "codex": ("Codex", _codex)}
    found: dict[str, Driver] = {}
    for binary, (name, driver) in known.items():
        if (binaries / binary).exists():
            found[name] = _bound(driver, binaries / binary)
    return found


def _bound(driver: Callable[[Run, Path], None], binary: Path) -> Driver:
    return lambda run: driver(run, binary)


def _claude_code(run: Run, binary: Path) -> None:
    headers = "\n".join(f"{name}: {value}" for name, value in run.all_headers.items())
    _command(
        run,
        [str(binary), "-p", TASK, "--model", MODEL, "--permission-mode", "bypassPermissions"],
        ANTHROPIC_BASE_URL=run.url,
        ANTHROPIC_API_KEY="none",
        ANTHROPIC_CUSTOM_HEADERS=headers,
        DISABLE_AUTOUPDATER="1",
        DISABLE_TELEMETRY="1",
        DISABLE_ERROR_REPORTING="1",
        IS_SANDBOX="1",
    )


_CODEX_CONFIG = """
model = "{model}"
model_provider = "local"
[model_providers.local]
name = "local"
base_url = "{url}/v1"
env_key = "LOCAL_KEY"
wire_api = "responses"
http_headers = {{ {headers} }}
[analytics]
enabled = false
"""


def _codex(run: Run, binary: Path) -> None:
    with tempfile.TemporaryDirectory() as home:
        headers = ", ".join(f'"{name}" = "{value}"' for name, value in run.all_headers.items())
        config = _CODEX_CONFIG.format(model=MODEL, url=run.url, headers=headers)
        (Path(home) / "config.toml").write_text(config)
        options = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
        _command(run, [str(binary), "exec", *options, TASK], CODEX_HOME=home, LOCAL_KEY="none")


def _command(run: Run, command: list[str], **environment: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [*run.prefix, *command],
            cwd=run.folder,
            env={name: os.environ[name] for name in _INHERITED if name in os.environ}
            | {"HOME": home}
            | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
