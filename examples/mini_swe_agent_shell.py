"""mini-swe-agent: every command of the agent in a sandbox of its own, reported with what it used.

    pip install 'agentsched[mini-swe-agent]'
    python examples/mini_swe_agent_shell.py

It speaks to the daemon at AGENTSCHED_URL if that is set, else to a simulated model in this process. The
command `mini` needs no script at all: mini -c mini.yaml -c environment.environment_class=\\
agentsched.sdk.mini_swe_agent.SandboxEnvironment
"""

from __future__ import annotations

import os
import tempfile
import uuid

from local_daemon import MODEL, local_daemon

os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else a list of prices is fetched

from minisweagent.agents.default import DefaultAgent
from minisweagent.config import get_config_from_spec
from minisweagent.models.litellm_model import LitellmModel

from agentsched.sdk.mini_swe_agent import SandboxEnvironment


def main() -> None:
    config = get_config_from_spec("mini.yaml")
    program = f"mini-{uuid.uuid4().hex[:12]}"
    with local_daemon({}) as url, tempfile.TemporaryDirectory() as folder:
        model = LitellmModel(
            model_name=f"openai/{MODEL}",
            model_kwargs={
                "api_base": f"{url}/v1",
                "api_key": "none",
                "extra_headers": {"x-agentsched-program": program},
            },
            cost_tracking="ignore_errors",
            observation_template=config["model"]["observation_template"],
            format_error_template=config["model"]["format_error_template"],
        )
        templates = {name: config["agent"][name] for name in ("system_template", "instance_template")}
        environment = SandboxEnvironment(cwd=folder, program=program)
        print(DefaultAgent(model, environment, **templates).run("Look around, then say what you found."))


if __name__ == "__main__":
    main()
