"""Every test gets its own sandbox, and is failed if it leaves a leaf behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentsched.cgroups import Sandbox
from agentsched.cgroups.sandbox import Runtime
from tests.cgroups.looking import own_leaves


@pytest.fixture(scope="session", autouse=True)
def runtimes() -> Iterator[None]:
    """Watchdogs and instances are a process's; they go with the last test."""
    yield
    Runtime.close_all()


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox on the machine's best cgroup backend; skips where there is none."""
    with Sandbox.open(request.node.name) as opened:
        if not opened.capabilities.memory_limit:
            pytest.skip("no cgroup limits here: " + "; ".join(f"{n}: {why}" for n, why in opened.refused))
        yield opened
        running = opened.leaves()
    assert running == {}
    assert own_leaves() == []


@pytest.fixture
def plain(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox on the none backend."""
    with Sandbox.open(request.node.name, backend="none") as opened:
        yield opened
