"""``agentsched wrap`` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentsched.cgroups import Sandbox
from agentsched.cgroups.bpf.loading import why_not
from agentsched.cgroups.sandbox import Runtime

MAIN = (sys.executable, "-c", "from agentsched.cli.main import main; main()", "wrap")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENT")}
    return kept | more


def wrap(*words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *words], input=stdin, capture_output=True, text=True, env=environment(**more), timeout=60
    )


@pytest.fixture(scope="session", autouse=True)
def runtimes() -> Iterator[None]:
    yield
    Runtime.close_all()


@pytest.fixture(scope="session")
def cgroups() -> None:
    with Sandbox.open("look") as sandbox:
        if sandbox.capabilities.backend == "none":
            pytest.skip("no cgroups here: " + "; ".join(f"{name}: {why}" for name, why in sandbox.refused))


@pytest.fixture(params=[pytest.param("bpf", marks=pytest.mark.full_v2), "polling"])
def sensing(request: pytest.FixtureRequest, cgroups: None) -> str:
    if request.param == "bpf" and (reason := why_not()) is not None:
        pytest.skip(f"no BPF here: {reason}")
    return str(request.param)
