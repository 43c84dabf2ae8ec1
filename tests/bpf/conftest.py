"""A leaf, and both sources of facts on it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from agentsched.cgroups import Leaf, Sandbox
from agentsched.cgroups.bpf import Event, Source, open_source
from agentsched.cgroups.bpf.loading import why_not
from agentsched.cgroups.contract import HostRefused
from agentsched.cgroups.sandbox import Runtime
from agentsched.cgroups.starting import inside

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="session", autouse=True)
def runtimes() -> Iterator[None]:
    yield
    Runtime.close_all()


@pytest.fixture(scope="session")
def _kernel() -> Iterator[Source | str]:
    """All programs, loaded once for all tests; or why not."""
    if (reason := why_not()) is not None:
        yield reason
        return
    try:
        source = open_source(wanted="bpf")
    except HostRefused as error:
        yield str(error)
        return
    yield source
    source.close()


@pytest.fixture
def kernel(_kernel: Source | str) -> Source:
    if isinstance(_kernel, str):
        pytest.skip(f"no BPF here: {_kernel}")
    _kernel.events(0.0)
    return _kernel


@pytest.fixture
def polled() -> Iterator[Source]:
    source = open_source(wanted="polling")
    yield source
    source.close()


@pytest.fixture(params=["kernel", "polled"])
def source(request: pytest.FixtureRequest) -> Source:
    found: Source = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def leaf(request: pytest.FixtureRequest) -> Iterator[Leaf]:
    with Sandbox.open(request.node.name) as sandbox:
        if sandbox.capabilities.backend == "none":
            pytest.skip("no cgroups here: " + "; ".join(f"{name}: {why}" for name, why in sandbox.refused))
        with sandbox.leaf("watched") as (_, made):
            yield made


@pytest.fixture
def start(leaf: Leaf) -> Iterator[Start]:
    """Starts a command in the leaf."""
    begun: list[subprocess.Popen[bytes]] = []

    def run(*argv: str, **more: object) -> subprocess.Popen[bytes]:
        words = inside(list(argv), os.environ, leaf.entries())
        process: subprocess.Popen[bytes] = subprocess.Popen(words, **more)  # type: ignore[call-overload]
        begun.append(process)
        return process

    yield run
    leaf.kill()
    for process in begun:
        process.wait(10)


def events_until(
    source: Source, enough: Callable[[list[Event]], bool], within_s: float = 20.0
) -> list[Event]:
    """What happened until it is enough. Fails when the time is over."""
    found: list[Event] = []
    deadline = time.monotonic() + within_s
    while not enough(found):
        assert time.monotonic() < deadline, f"only this happened: {found}"
        found += source.events(0.2)
    return found
