"""One real SGLang server for all tests of this folder. Without an SGLang they are skipped, and say why; where
AGENTSCHED_SGLANG_REQUIRED is set, as ``scripts/test sglang`` does, that is an error."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from agentsched.engines.sglang.recorded import FLAG
from agentsched.workloads.sglang_model import write_model
from agentsched.workloads.sglang_server import PLUGIN, SglangServer, missing
from tests.sglang.serving import Pilot

HERE = Path(__file__).parent
REQUIRED_VARIABLE = "AGENTSCHED_SGLANG_REQUIRED"
_missing = functools.cache(missing)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    if here and (reason := _missing()) is not None:
        if os.environ.get(REQUIRED_VARIABLE):
            raise pytest.UsageError(reason)
        for item in here:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTSCHED_SGLANG_SOCKETS", str(tmp_path_factory.mktemp("s") / "s"))
        yield


@pytest.fixture(scope="session")
def server(model: Path, sockets: None) -> Iterator[SglangServer]:
    server = SglangServer(model, (*PLUGIN, FLAG))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def pilot(server: SglangServer) -> AsyncIterator[Pilot]:
    """Connected to the server, which has no KV of earlier tests."""
    async with aiohttp.ClientSession() as http:
        pilot = Pilot(server, http)
        await pilot.flush()
        await pilot.connect()
        yield pilot
        for program in list(pilot.held):
            await pilot.order(pilot.release(program))
        assert pilot.link is not None
        await pilot.link.close()
