"""The daemon's own endpoints do what their OpenAPI document says, whatever is sent to them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentsched.daemon.access import VIEW_PATH
from agentsched.daemon.keys import hashed
from tests.cli.test_serve import DEADLINE_S, serving
from tests.daemon.keyed import ACME, ADMIN_KEY, two_tenants
from tests.daemon.serving import Served, served

EXAMPLES = 12
SEED = 1

UNJUDGED = (
    # A request with a key of ours in one header and a stranger's in the other is let in.
    "ignored_auth",
    # Which characters are printable differs by the version of Unicode.
    "positive_data_acceptance",
)


async def document(served_: Served) -> Any:
    return (await served_.ask("GET", "/openapi.json"))[1]


async def test_the_document_has_every_endpoint_of_our_own() -> None:
    async with served(declared=two_tenants()) as served_:
        described = await document(served_)
    assert described["openapi"].startswith("3.1")
    found = {(method.upper(), path) for path, known in described["paths"].items() for method in known}
    programs = "/agentsched/v1/programs"
    assert found >= {
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
        ("POST", programs),
        ("GET", programs),
        *((method, programs + "/{program}") for method in ("GET", "PATCH", "DELETE")),
        ("POST", "/agentsched/v1/events"),
        ("DELETE", "/agentsched/admin/tenants/{tenant}/keys/{key}"),
    }
    assert not [path for path in described["paths"] if path.startswith(VIEW_PATH)], "the page's own"
    names = [
        operation["operationId"] for known in described["paths"].values() for operation in known.values()
    ]
    assert len(names) == len(set(names))


async def test_posted_events_are_described_without_what_follows_from_the_key() -> None:
    async with served() as served_:
        schemas = (await document(served_))["components"]["schemas"]
    opened = schemas["ProgramOpened"]
    assert opened["required"] == ["event", "program"]
    assert not {"tenant", "weight", "priority"} & opened["properties"].keys()
    assert "program" not in schemas["ToolStarted"]["required"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("daemon")
    tenants = folder / "tenants.toml"
    tenants.write_text(
        f'admin_keys = ["{hashed(ADMIN_KEY)}"]\n[[tenants]]\nname = "acme"\nkeys = ["{hashed(ACME)}"]\n'
    )
    with serving(folder, "--tenants", str(tenants)) as (process, url):
        yield url
        assert process.poll() is None, "it must not break down"


@pytest.mark.parametrize(
    ("which", "key"), [("--include-path-regex", ACME), ("--exclude-path-regex", ADMIN_KEY)]
)
def test_schemathesis_finds_nothing(daemon: str, which: str, key: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "schemathesis.cli", "run", f"{daemon}/openapi.json", "--no-color"]
    argv += [which, "^/agentsched/v1", "-H", f"x-api-key: {key}", "--exclude-checks", ",".join(UNJUDGED)]
    argv += ["--phases", "coverage,fuzzing,stateful", "--max-examples", str(EXAMPLES)]
    argv += ["--seed", str(SEED), "--generation-deterministic"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "generated" in done.stdout
