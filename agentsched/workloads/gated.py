"""The sandbox environment for mini-swe-agent, waiting for the other agents before the first call."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from agentsched.sdk.mini_swe_agent import SandboxEnvironment, SandboxEnvironmentConfig
from agentsched.workloads.agents import wait_at_gate

# mini imports these after it has made its environment; each costs CPU that would delay first calls.
_IMPORTED_LATER = ("minisweagent.agents.interactive", "openai.resources.chat")


class GatedEnvironmentConfig(SandboxEnvironmentConfig):
    """``gate``: the folder of an ``agents.Gate``."""

    gate: str


class GatedEnvironment(SandboxEnvironment):
    """A ``SandboxEnvironment`` whose constructor returns when the gate opens."""

    def __init__(self, **kwargs: Any) -> None:
        config = GatedEnvironmentConfig(**kwargs)
        super().__init__(config_class=GatedEnvironmentConfig, **kwargs)
        for module in _IMPORTED_LATER:
            importlib.import_module(module)
        wait_at_gate(Path(config.gate), self.program)
