"""The documentation builds with every link checked, and the commands on its pages run.

Of each page the fenced blocks of shell commands (```sh) are run in order, in one folder, with the Python
files that the page shows under a title. A comment right before a block says otherwise: ``<!-- not run: WHY
-->``, or ``<!-- in the background, ... -->`` for a server, which is waited for by its /ready and ends with
the page. Port 8090 is another one here.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from agentsched.cli.commands import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

BLOCK = re.compile(
    r"(?:<!-- *(?P<mark>[^>]*?) *-->\n)?"
    r"^```(?P<kind>sh|python)(?: title=\"(?P<title>[\w.]+)\")?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
START_S = 60.0


class Block(NamedTuple):
    kind: str
    title: str
    body: str
    mark: str


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["kind"], m["title"] or "", m["body"], m["mark"] or "") for m in found]


PAGES = sorted(page for page in DOCS.glob("*.md") if any(block.kind == "sh" for block in blocks(page)))


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which this checkout's commands come first, and nothing of the user's is touched."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in {
        "agentsched": '-c "from agentsched.cli.main import main; main()"',
        "python": "",
    }.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
    if curl := shutil.which("curl"):
        # it would end well whatever a server answers
        (commands / "curl").write_text(f'#!/bin/sh\nexec {curl} --fail-with-body "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AGENT", "OPENAI", "XDG"))
    }
    return kept | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def in_the_background(commands: str, port: int, folder: Path, shell: dict[str, str]) -> Iterator[None]:
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            ["sh", "-c", f"exec {commands}"],
            cwd=folder,
            env=shell,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            assert until_ready(port, server), (folder / "server.log").read_text()
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def until_ready(port: int, server: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/ready")
            status = connection.getresponse().status
            connection.close()
            if status == 200:
                return True
        except OSError:
            time.sleep(0.05)
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path, shell: dict[str, str]) -> None:
    missing = [tool for tool in ("curl",) if f"{tool} " in page.read_text("utf-8") and not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {missing}")
    port = free_port()
    folder = tmp_path / "user"
    folder.mkdir()
    with ExitStack() as servers:
        for block in blocks(page):
            body = block.body.replace("8090", str(port))
            if block.kind == "python":
                if block.title:
                    (folder / block.title).write_text(body)
            elif block.mark.startswith("in the background"):
                servers.enter_context(in_the_background(body, port, folder, shell))
            elif not block.mark.startswith("not run"):
                done = subprocess.run(
                    ["sh", "-euc", body], cwd=folder, env=shell, capture_output=True, text=True, timeout=100
                )
                assert done.returncode == 0, f"{page.name}:\n{body}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_says_why(page: Path) -> None:
    silent = [block.mark for block in blocks(page) if re.fullmatch(r"not run( here)?:?\s*", block.mark)]
    assert not silent
    marks = [block.mark for block in blocks(page) if block.mark]
    assert all(re.match(r"(not run( here)?: |in the background)", mark) for mark in marks), marks


def test_commands_are_fenced_as_such() -> None:
    """Else they would be run by nobody, and nobody would know."""
    begin = r"(?:^```\n|^    )(?:[A-Z_]+=\S+ )*(?:agentsched|scripts/|pip|python|curl|mini)\b.*$"
    hidden = re.compile(begin, re.MULTILINE)
    found = {page.name: hidden.findall(page.read_text("utf-8")) for page in DOCS.glob("*.md")}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_commands_that_are_named_are_there() -> None:
    benches = {path.stem for path in (ROOT / "agentsched/workloads/bench").glob("[!_]*.py")}
    for page in DOCS.glob("*.md"):
        text = page.read_text("utf-8")
        named = re.findall(r"`agentsched ([a-z][\w-]*)", text)
        assert set(named) <= COMMANDS.keys(), page.name
        measured = {name.replace("-", "_") for name in re.findall(r"scripts/bench ([a-z][\w-]*)", text)}
        assert measured <= benches, page.name


def test_python_on_the_pages_is_python() -> None:
    for page in DOCS.glob("*.md"):
        for block in blocks(page):
            if block.kind == "python":
                compile(block.body, f"{page.name}", "exec", flags=0x2000)  # with await outside of functions


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("material") is None:
        pytest.skip("needs mkdocs-material (the extra docs)")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_builds_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="?(?:https?:)?//', re.IGNORECASE)
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 15
    assert {page.name: found for page in pages if (found := fetched.findall(page.read_text("utf-8")))} == {}
    # what the theme's scripts would fetch, were it asked for on a page
    assert not [
        page.name for page in pages if re.search(r'unpkg\.com|class="mermaid"', page.read_text("utf-8"))
    ]


def test_pictures_are_part_of_their_pages(site: Path) -> None:
    concepts = (site / "concepts.html").read_text("utf-8")
    assert concepts.count('<svg class="picture"') == 3
    assert "pictures/life.svg" not in concepts
