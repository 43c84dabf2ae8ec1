"""``agentsched run`` as a shell sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentsched.cgroups import isolation
from agentsched.cli import run_options
from agentsched.cli.run import run as run_command
from tests.cgroups.looking import eventually, instances_of, is_running

BACKENDS = [pytest.param("auto", marks=pytest.mark.cgroups), "none"]
MAIN = [sys.executable, "-c", "from agentsched.cli.main import main; main()", "run"]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENT")}
    return kept | more


def run(*words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *words], input=stdin, capture_output=True, text=True, env=environment(**more), timeout=60
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -9 $$"], 128 + 9),
        (["--timeout", "0.3", "--", "sleep", "300"], 124),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_status_is_the_commands(words: list[str], status: int, backend: str) -> None:
    assert run(*words, AGENTSCHED_BACKEND=backend).returncode == status


def test_stdio_is_passed_through_and_options_of_the_command_are_its_own() -> None:
    done = run("--", "sh", "-c", 'cat; echo "$@" >&2', "sh", "--json", "-x", stdin="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "--json -x\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument"),
        (["--disk", "1G", "true"], "go with --isolate"),
        (["--isolate", "--disk", "1K", "true"], "at least 1 MiB"),
        (["--hint", "lots", "true"], "'lots' is not <memory|cpu|time>:<low|medium|high|amount>"),
        (["--memory", "much", "true"], "'much' is not a size such as 512M"),
        (["--memory", "1K", "true"], "memory_bytes must be at least 1 MiB"),
        (["--cpu", "0", "true"], "cpu_cores must be from 0.01"),
        (["--timeout", "-1", "true"], "timeout_s must be a positive"),
        (["--json", "/no/such/folder/file", "true"], "No such file or directory"),
    ],
)
def test_wrong_usage_is_status_2_with_a_reason_and_runs_nothing(words: list[str], message: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_hint_may_come_from_the_environment() -> None:
    assert "'lots'" in run("true", AGENT_RESOURCE_HINT="lots").stderr
    record = json.loads(run("--json", "-", "true", AGENT_RESOURCE_HINT="memory:high").stdout)
    assert record["hint"] == "memory:high"


@pytest.mark.cgroups
def test_the_json_record_agrees_with_what_the_command_did(tmp_path: Path) -> None:
    file = tmp_path / "usage.json"
    code = "import time\nx = bytearray(64 << 20)\nwhile time.process_time() < 0.3: pass"
    names = ["--program", "p/1", "--tool-call", "call_7", "--json", str(file), "--usage"]
    done = run(*names, "--", sys.executable, "-S", "-c", code)
    record = json.loads(file.read_text())
    assert (record["program"], record["tool_call"], record["exit_status"]) == ("p/1", "call_7", 0)
    assert 0.28 <= record["cpu_s"] <= 0.8
    assert 64 << 20 <= record["peak_memory_bytes"] <= 90 << 20
    assert "MiB at most, exited with 0" in done.stderr


@pytest.mark.cgroups
def test_a_memory_limit_kills_and_says_so() -> None:
    done = run("--memory", "40M", "--", sys.executable, "-S", "-c", "x = bytearray(200 << 20)")
    assert done.returncode == 128 + 9
    assert "at its memory limit of 40 MiB" in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_command_and_all_that_it_started(number: signal.Signals, backend: str) -> None:
    script = "setsid sleep 300 & echo $!; exec sleep 300"
    process = subprocess.Popen(
        [*MAIN, "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(AGENTSCHED_BACKEND=backend),
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(number)
    status = process.wait(20)
    process.stdout.close()
    assert status == (-9 if number == signal.SIGKILL else 128 + number)
    assert eventually(lambda: not is_running(child) and instances_of(process.pid) == [], 5.0)


class Daemon(BaseHTTPRequestHandler):
    """Takes events and keeps them."""

    events: list[dict[str, Any]]

    def do_POST(self) -> None:
        assert self.path == "/agentsched/v1/events"
        self.events += json.loads(self.rfile.read(int(self.headers["content-length"])))["events"]
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def daemon() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    events: list[dict[str, Any]] = []
    with HTTPServer(("127.0.0.1", 0), type("Bound", (Daemon,), {"events": events})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", events
        server.shutdown()
        thread.join()


def test_start_and_end_are_reported_to_the_daemon(daemon: tuple[str, list[dict[str, Any]]]) -> None:
    url, events = daemon
    done = run("--program", "p", "--tool-call", "c", "--", "sh", "-c", "exit 3", AGENTSCHED_URL=url)
    assert (done.returncode, done.stderr) == (3, "")
    started, finished = events
    assert started == {
        "event": "ToolStarted",
        "tool_call": "c",
        "program": "p",
        "tool": "bash",
        "command": "sh",
    }
    assert (finished["event"], finished["tool_call"], finished["exit_status"]) == ("ToolFinished", "c", 3)


def test_a_daemon_that_is_away_is_one_warning_and_no_error() -> None:
    done = run("--daemon", "http://127.0.0.1:9", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "http://127.0.0.1:9" in done.stderr


def test_without_cgroups_it_says_once_what_is_lost() -> None:
    code = (
        "from agentsched.cgroups import detect, hierarchy\n"
        "hierarchy.here = lambda: hierarchy.Hierarchies(None, {})\n"
        "from agentsched.cgroups import Sandbox\n"
        "for name in 'ab': Sandbox.open(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert len(done.stderr.splitlines()) == 1
    assert "tool calls run on the none backend (v2: no cgroup v2 hierarchy is mounted" in done.stderr
    assert "limits are not enforced" in done.stderr


def test_it_starts_without_heavy_imports() -> None:
    code = (
        "import sys, agentsched.cli.run\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}"
        " & {'torch', 'aiohttp', 'numpy', 'networkx', 'rich', 'asyncio', 'urllib3', 'http'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.cgroups
def test_an_isolated_command_writes_where_it_may_and_is_told_when_its_disk_is_full(tmp_path: Path) -> None:
    if why := isolation.missing():
        pytest.skip(why)
    (tmp_path / "own").mkdir()
    script = f"cd {tmp_path}; echo a > own/a; head -c 9999999 /dev/zero > fill; ls; exit 3"
    done = run("--isolate", "--disk", "4M", "--writable", f"{tmp_path}/own", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (3, "fill\nown\n")
    assert "its disk was full" in done.stderr.lower()
    assert sorted(os.listdir(tmp_path)) == ["own"]
    assert (tmp_path / "own" / "a").read_text() == "a\n"


def test_where_isolation_cannot_be_had_nothing_runs() -> None:
    bare = str(Path(sys.executable).parent)  # no bwrap there
    done = run("--isolate", "--", sys.executable, "-c", "print('ran')", PATH=bare)
    assert (done.returncode, done.stdout) == (125, "")
    assert "apt-get install bubblewrap" in done.stderr


NEEDED = """
import sys
from agentsched.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in sys.modules if name in HEAVY or name.startswith("agentsched.core")])
"""


@pytest.mark.parametrize(
    "words", [["/bin/true"], ["--memory=64M", "--timeout", "9", "--nesting", "--", "/bin/true"]]
)
def test_a_plain_run_imports_little_for_each_import_delays_the_command(words: list[str]) -> None:
    heavy = {"click", "logging", "asyncio", "json", "uvloop", "networkx"}
    heavy |= {"dataclasses", "tempfile", "http.client", "urllib.request", "agentsched.sdk", "rich"}
    code = f"HEAVY = {heavy!r}\n{NEEDED}"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", *words], capture_output=True, text=True, env=environment()
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--no-such-option", "true"],
        ["--memory", "lots", "true"],
        ["--timeout"],
        ["--usage=yes", "true"],
        ["--json", "/nowhere/file", "true"],
        [],
    ],
)
def test_what_is_not_plain_is_left_to_click(words: list[str]) -> None:
    assert run_options.parse(words) is None


def test_both_ways_of_reading_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSCHED_PROGRAM", "of-the-environment")
    words = ["--memory=1.5G", "--cpu", "0.5", "--priority", "3", "--writable", "/tmp", "--writable=/var"]
    words += ["--isolate", "--hint", "cpu:low", "--", "sh", "-c", "--memory"]
    plain = run_options.parse(words)
    assert plain is not None
    with run_command.make_context("run", list(words)) as context:
        assert context.params | {"program": plain["program"]} == plain
        assert context.params["program"] == "of-the-environment"
    assert (plain["memory"], plain["writable"]) == (3 << 29, ("/tmp", "/var"))
    assert plain["command"] == ("sh", "-c", "--memory")
