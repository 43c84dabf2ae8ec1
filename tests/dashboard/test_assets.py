"""The built page is of the sources that lie beside it, and needs nothing from elsewhere."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import agentsched.daemon.dashboard as package
from agentsched.core.outlook import Wait
from agentsched.daemon.dashboard import words

FOLDER = Path(package.__file__).parent
WEB, STATIC = FOLDER / "web", FOLDER / "static"


def test_the_built_page_is_not_stale() -> None:
    """As ``web/build.mjs`` hashes them."""
    names = ["build.mjs", "package-lock.json", "package.json", "tsconfig.json"]
    names += [f"src/{path.name}" for path in (WEB / "src").iterdir()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (WEB / name).read_bytes() + b"\0")
    noted = (STATIC / "SOURCES.sha256").read_text().strip()
    assert noted == digest.hexdigest(), (
        f"built from other sources: run 'npm ci && npm run build' in {WEB} and commit {STATIC}"
    )


def test_the_page_names_no_other_place() -> None:
    for path in STATIC.iterdir():
        urls = re.findall(r"https?://[\w./-]+", path.read_text("utf-8"))
        assert all(url.startswith("http://www.w3.org/") for url in urls), path  # names of XML, not fetched


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 120_000


def test_what_the_page_loads_is_there() -> None:
    index = (STATIC / "index.html").read_text("utf-8")
    loaded = re.findall(r'(?:href|src)="dashboard/([^"]+)"', index)
    assert loaded
    assert set(loaded) <= {path.name for path in STATIC.iterdir()}


def test_both_sides_name_the_same_fields() -> None:
    """``types.ts`` mirrors ``rows.py``."""
    rows = (FOLDER / "rows.py").read_text("utf-8")
    types = (WEB / "src" / "types.ts").read_text("utf-8")
    for name in ("CallRow", "ToolRow", "ProgramRow", "Item", "EngineRow", "HostRow"):
        python = re.search(rf"class {name}\(.*?\n\n\n", rows, re.S)
        script = re.search(rf"interface {name} \{{(.*?)\}}", types, re.S)
        assert python is not None
        assert script is not None
        fields = set(re.findall(r"^    (\w+):", python.group(), re.M))
        mirrored = set(re.findall(r"^  (\w+)\??:", script.group(1), re.M))
        assert mirrored <= fields, name
        assert fields - mirrored <= {"heard_s"}, name


def test_the_page_knows_reasons_by_words_that_are_said() -> None:
    """``words.ts`` tells by them who is behind another, and who is too large for now."""
    behind = words.wait(Wait(program="p", cause="line", behind="other"), "", None)
    too_large = words.wait(Wait(program="p", cause="now"), "", None)
    known = (WEB / "src" / "words.ts").read_text("utf-8")
    expression = re.search(r"const BEHIND = /(.*)/;", known)
    begin = re.search(r'waits\.startsWith\("(.*)"\)', known)
    assert expression is not None
    assert begin is not None
    assert re.match(expression[1], behind)
    assert too_large.startswith(begin[1])
