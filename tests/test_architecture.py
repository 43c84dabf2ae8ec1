"""Holds the shape of the code: which room may import which, and what each of them may touch.

Read from the source (AST), so that an import inside a function or under TYPE_CHECKING counts too.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "agentsched"

VOCABULARY = ("agentsched.core.events", "agentsched.core.decisions")
PREDICTORS = ("agentsched.graphs.predict",)

# Room -> what of ours it may import beside itself. A name stands for itself and all below it.
ARROWS: dict[str, tuple[str, ...]] = {
    "core": PREDICTORS,
    "graphs": ("agentsched.core.events",),
    "engines": (*VOCABULARY, "agentsched.core.standing"),
    "cgroups": (*VOCABULARY, "agentsched.core.tool_control", *PREDICTORS),
    "sdk": (*VOCABULARY, "agentsched.cgroups"),
    "daemon": ("agentsched.core", "agentsched.graphs", "agentsched.engines", "agentsched.cgroups"),
    "workloads": tuple(
        f"agentsched.{room}" for room in ("core", "graphs", "engines", "cgroups", "sdk", "daemon")
    ),
    "cli": ("agentsched",),
}

# Third-party package -> the only places that import it: their adapters.
ADAPTERS: dict[str, tuple[str, ...]] = {
    "torch": ("agentsched.engines.embedded", "agentsched.workloads.bench"),
    "transformers": ("agentsched.engines", "agentsched.workloads.bench"),
    "safetensors": ("agentsched.engines.embedded", "agentsched.workloads.bench"),
    "llguidance": ("agentsched.engines.embedded",),
    "tokenizers": ("agentsched.engines", "agentsched.workloads"),
    "aiohttp": ("agentsched.daemon", "agentsched.engines", "agentsched.workloads", "agentsched.cli"),
    "bcc": ("agentsched.cgroups",),
    "networkx": ("agentsched.graphs", "agentsched.workloads"),
    "playwright": ("agentsched.workloads",),
    "plotly": ("agentsched.workloads",),
    "minisweagent": ("agentsched.sdk", "agentsched.workloads"),
    "sglang": ("agentsched.engines.sglang",),
    "httptools": ("agentsched.engines.upstream",),
    "xxhash": ("agentsched.daemon",),
    "uvloop": ("agentsched.cli", "agentsched.workloads.bench"),
    "click": ("agentsched.cli", "agentsched.workloads.bench"),
    "rich": ("agentsched.cli", "agentsched.workloads"),
    "scipy": ("agentsched.workloads.bounds", "agentsched.workloads.grid"),
    "matplotlib": ("agentsched.workloads.grid",),
    "agents": ("agentsched.sdk.openai_agents", "agentsched.workloads.live_clients"),
    "langgraph": ("agentsched.workloads.live_clients",),
    "langchain_core": ("agentsched.sdk.langgraph",),
    "langchain_openai": ("agentsched.workloads.live_clients",),
    "smolagents": ("agentsched.sdk.smolagents", "agentsched.workloads.live_clients"),
    "mcp": (),
}

# Imported by SGLang only, in its own environment (tests/sglang).
INSIDE_SGLANG = tuple(f"agentsched.engines.sglang.{name}" for name in ("cache", "scheduling", "emitting"))

# What gives time, chance, threads, files or the network. The core has none of them.
IO_MODULES = frozenset(
    {"asyncio", "concurrent", "multiprocessing", "queue", "select", "selectors", "signal", "subprocess"}
    | {"datetime", "time", "random", "secrets", "uuid", "threading", "logging"}
    | {"fcntl", "glob", "http", "io", "os", "pathlib", "shutil", "socket", "sqlite3", "tempfile", "urllib"}
)
IO_CALLS = frozenset({"open", "print", "input", "breakpoint", "exec", "eval"})

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50

PACKAGE_LINKS = ("cgroups", "engines", "graphs", "workloads")


def source_files() -> list[Path]:
    """Our own modules; the tasks are data that agents work on."""
    return sorted(p for p in PACKAGE.rglob("*.py") if PACKAGE / "workloads" / "tasks" not in p.parents)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in source_files()}
PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def below(name: str, *places: str) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def imports(module: str, source: str | None = None) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import in a module. ``from a import b`` counts as ``a.b``
    where that is a module of ours, else as ``a``."""
    path = MODULES[module]
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                anchor = anchor[: len(anchor) - node.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in MODULES else base


def wrong_arrows(module: str, source: str | None = None) -> list[str]:
    room = module.split(".")[1] if "." in module else ""
    if room not in ARROWS:
        return []
    allowed = (f"agentsched.{room}", *ARROWS[room])
    return [
        f"{module}:{line} imports {target}; {room} may import only {', '.join(allowed)}"
        for line, target in imports(module, source)
        # the package itself holds nothing but its version
        if below(target, "agentsched") and target != "agentsched" and not below(target, *allowed)
    ]


def io_uses(module: str, source: str | None = None) -> list[str]:
    found = [
        f"{module}:{line} imports {target}"
        for line, target in imports(module, source)
        if target.split(".")[0] in IO_MODULES
    ]
    tree = ast.parse(source or MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IO_CALLS:
            found.append(f"{module}:{node.lineno} calls {node.func.id}()")
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await):
            found.append(f"{module}:{node.lineno} is asynchronous")
    return found


def long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines"


def test_files_and_functions_can_be_read_at_one_go() -> None:
    """Past these lengths a file answers more than one question: split it by question."""
    sources = [*source_files(), *(ROOT / "tests").rglob("*.py")]
    too_long = [
        f"{path.relative_to(ROOT)} has {lines} lines"
        for path in sources
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    ]
    too_long += [problem for path in sources for problem in long_functions(path)]
    if too_long:
        pytest.fail("split these:\n" + "\n".join(too_long), pytrace=False)


def test_every_room_has_its_arrows() -> None:
    rooms = {name.split(".")[1] for name in PACKAGES if name.count(".") == 1}
    assert rooms == set(ARROWS), "a new room needs its arrows here and in CONTRIBUTING.md"


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module: str) -> None:
    assert not wrong_arrows(module)


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("agentsched.core.events", "import agentsched.engines.contract", True),
        ("agentsched.core.events", "def f():\n    from agentsched import daemon", True),
        ("agentsched.core.events", "from ..graphs import aeg", True),
        ("agentsched.core.events", "from agentsched.graphs.predict import GapModel", False),
        ("agentsched.engines.contract", "from agentsched.core import Core", True),
        ("agentsched.engines.contract", "from agentsched.core import events", False),
        ("agentsched.engines.contract", "from agentsched import __version__", False),
        ("agentsched.sdk.programs", "from agentsched.daemon import gateway", True),
        ("agentsched.cli.main", "import agentsched.workloads", False),
    ],
)
def test_a_wrong_arrow_is_seen_in_every_form_of_import(module: str, source: str, wrong: bool) -> None:
    assert bool(wrong_arrows(module, source)) is wrong


@pytest.mark.parametrize("module", [m for m in MODULES if below(m, "agentsched.core", *PREDICTORS)])
def test_the_core_does_no_io(module: str) -> None:
    assert not io_uses(module)


@pytest.mark.parametrize(
    "source",
    ["import time", "from time import monotonic", "import os.path", "open('x')", "async def f(): ..."],
)
def test_io_in_the_core_is_seen(source: str) -> None:
    assert io_uses("agentsched.core.events", source)


@pytest.mark.parametrize("package", ADAPTERS)
def test_a_third_party_package_is_imported_only_by_its_adapters(package: str) -> None:
    strays = [
        f"{module}:{line}"
        for module in MODULES
        if not below(module, *ADAPTERS[package])
        for line, target in imports(module)
        if below(target, package)
    ]
    assert not strays, f"{package} belongs to {ADAPTERS[package]}"


USED = (
    *("engine", "gpu", "demo", "bench", "clients", "kv-events", "otel", "fast", "sglang"),
    *("langgraph", "mcp", "mini-swe-agent", "openai-agents", "smolagents"),
)


def test_what_is_imported_is_declared() -> None:
    """A package that is only there because another one brings it is gone one day."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = (
        re.match(r"[\w.-]+", requirement)
        for requirement in sum((extras[extra] for extra in USED), project["dependencies"])
    )
    declared = {canonical(name.group()) for name in names if name}
    providers = packages_distributions()
    undeclared = [
        f"{module}:{line} {target}"
        for module in MODULES
        for line, target in imports(module)
        if (top := target.split(".")[0]) not in sys.stdlib_module_names | {"agentsched", "bcc"}
        and not {canonical(name) for name in providers.get(top, [top])} & declared
    ]
    assert not undeclared, "add to pyproject.toml's dependencies or an extra, and to constraints.txt"


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_there_is(name: str) -> None:
    if name in INSIDE_SGLANG and importlib.util.find_spec("sglang") is None:
        pytest.skip("it lives in SGLang's process, and SGLang has an environment of its own")
    module = importlib.import_module(name)
    exported = list(getattr(module, "__all__", []))
    assert len(exported) == len(set(exported)), f"{name}.__all__ repeats a name"
    missing = [export for export in exported if not hasattr(module, export)]
    assert not missing, f"{name}.__all__ names what is not there"


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_exports_all_that_it_brings_together(room: str) -> None:
    """Names that a room's ``__init__`` imports from below itself are its interface: all of them, listed."""
    name = f"agentsched.{room}"
    public = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and below(node.module or "", name):
            public |= {alias.asname or alias.name for alias in node.names}
    exported = set(getattr(importlib.import_module(name), "__all__", ()))
    assert public <= exported, f"list in {name}.__all__, or do not import: {sorted(public - exported)}"


@pytest.mark.parametrize("room", ARROWS)
def test_each_room_can_be_imported_first(room: str) -> None:
    """In a fresh interpreter: an import cycle may show only when one certain room comes first."""
    done = subprocess.run(
        [sys.executable, "-c", f"import agentsched.{room}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PACKAGE_LINKS)
def test_links_at_the_root_lead_to_the_nested_packages(name: str) -> None:
    link = ROOT / name
    if not link.is_symlink():
        pytest.skip(f"{name}: this checkout has no symbolic links")
    assert os.readlink(link) == f"agentsched/{name}"
    assert link.resolve() == PACKAGE / name


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())
for name in [m for m in sys.modules if m.split(".")[0] in BLOCKED]:
    del sys.modules[name]
"""

# The standard library picks its own Linux parts first; then the system becomes another one.
SDK_ELSEWHERE = """
import asyncio, ctypes, multiprocessing, os, pathlib, shutil, subprocess, tempfile, threading
import urllib.request
sys.platform = "darwin"
for lacking in ("pidfd_open", "sched_setaffinity", "sched_getaffinity", "geteuid", "setns", "unshare"):
    if hasattr(os, lacking):
        delattr(os, lacking)

from agentsched import sdk
from agentsched.sdk import *

@sdk.tool
def add(a, b):
    return a + b

@sdk.agent(name="adder")
def run():
    return add(1, 2)

print(run())
"""


def run_blocked(code: str, blocked: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTSCHED_")}
    return subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {blocked!r}\n{BLOCKER}\n{code}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_sdk_imports_and_runs_without_the_heavy_packages_and_without_linux() -> None:
    """An agent's process needs the SDK on any system, with none of what engines and daemon need."""
    linux = ["fcntl", "resource", "pwd", "grp", "termios"]
    done = run_blocked(SDK_ELSEWHERE, [*ADAPTERS, "prometheus_client", "numpy", "openai", *linux])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"


def test_the_daemon_imports_with_nothing_but_the_base_install() -> None:
    daemon = [name for name in MODULES if below(name, "agentsched.daemon")]
    extras = [
        "torch",
        "transformers",
        "safetensors",
        "tokenizers",
        "llguidance",
        "numpy",
        "jinja2",
        "plotly",
        "minisweagent",
    ]
    done = run_blocked("\n".join(f"import {name}" for name in daemon), extras)
    assert done.returncode == 0, done.stderr
