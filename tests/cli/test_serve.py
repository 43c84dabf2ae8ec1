"""``agentsched serve`` as a process: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from agentsched.cli.serve import serve

DEADLINE_S = 60.0


@contextmanager
def serving(tmp_path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    ready = tmp_path / "ready"
    argv = [sys.executable, "-m", "agentsched", "serve", "--engine", "simulated", "--port", "0"]
    argv += ["--ready-file", str(ready), *options]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not ready.exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "it does not get ready"
                time.sleep(0.02)
            yield process, ready.read_text().strip()
        finally:
            if process.poll() is None:
                process.kill()


def ask(url: str) -> Any:
    body = json.dumps({"model": "simulated", "messages": [{"role": "user", "content": "/say hello"}]})
    with urllib.request.urlopen(f"{url}/v1/chat/completions", body.encode(), timeout=DEADLINE_S) as answer:
        return json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_says_so_in_one_line_and_ends_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "events.jsonl"
    with serving(tmp_path, "--kv-tokens", "20000", "--log", str(log)) as (process, url):
        assert ask(url)["choices"][0]["message"]["content"] == "hello"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_S)
    served = "policy agentsched, engine simulated, 20,000 KV tokens"
    assert out == f"agentsched: listening on {url} ({served}); see {url}/dashboard\n"
    assert (process.returncode, err) == (0, "agentsched: stopped\n")
    assert not children[0].is_running()
    assert '"CallFinished"' in log.read_text()


def test_a_killed_daemon_leaves_no_engine(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _):
        (engine,) = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        gone, alive = psutil.wait_procs([engine], timeout=5)
    assert (len(gone), alive) == (1, [])


def run(*options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agentsched", "serve", *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_what_cannot_be_served_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("--engine", "simulated", "--port", port)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("--engine", "simulated", "--port", "0", "--log", str(tmp_path / "no" / "log"))
    assert done.returncode == 1
    assert str(tmp_path / "no" / "log") in done.stderr


def test_options_without_meaning_are_wrong_usage(tmp_path: Path) -> None:
    assert run("--policy", "best").returncode == 2
    assert run("--engine", "simulated", "--model", str(tmp_path)).returncode == 2
    done = run("--engine", "simulated", "--engine-core", "100000")
    assert (done.returncode, "100000" in done.stderr) == (2, True)


def test_help_teaches_with_an_example() -> None:
    done = run("--help")
    assert "agentsched serve --port 8090" in done.stdout
    assert "x-agentsched-program" in done.stdout


def test_a_recorded_agent_is_served_by_the_embedded_engine(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    preset = pytest.importorskip("agentsched.engines.embedded.preset")
    model = preset.ensure_model(tmp_path, progress=lambda text: None, preset="tiny")
    turns = [{"thought": "Looking.", "command": "ls"}, {"thought": "Done.", "command": "true"}]
    (tmp_path / "scripts" / "agent").mkdir(parents=True)
    (tmp_path / "scripts" / "agent" / "turns.json").write_text(json.dumps(turns))
    options = ("--engine", "embedded", "--model", str(model), "--scripts", str(tmp_path / "scripts"))
    with serving(tmp_path, *options, "--kv-tokens", "2048") as (_, url):
        messages: list[Any] = [{"role": "user", "content": "repair it"}]
        for turn in turns:
            body = json.dumps({"model": "recorded/agent", "messages": messages}).encode()
            with urllib.request.urlopen(f"{url}/v1/chat/completions", body, timeout=DEADLINE_S) as answer:
                program = answer.headers["x-agentsched-program"]
                reply = json.load(answer)
            message = reply["choices"][0]["message"]
            (call,) = message["tool_calls"]
            assert message["content"] == turn["thought"]
            assert json.loads(call["function"]["arguments"]) == {"command": turn["command"]}
            messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": "a b c"}]
        with urllib.request.urlopen(f"{url}/agentsched/v1/programs", timeout=DEADLINE_S) as answer:
            (view,) = json.load(answer)["programs"]
        assert (view["program"], view["calls_done"]) == (program, 2)
        # All of the first call's whole blocks were still held when the second came.
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        (["http://127.0.0.1:1#pins"], "'pins' means nothing behind the # of a server's URL"),
        (["http://127.0.0.1:1", "http://127.0.0.1:1#priority"], "the same server is named twice"),
        (["127.0.0.1:1"], "is no URL of a server"),
    ],
)
def test_what_is_wrong_about_servers_is_said_before_anything_starts(urls: list[str], said: str) -> None:
    flags = [word for url in urls for word in ("--upstream", url)]
    done = CliRunner().invoke(serve, [*flags, "--port", "0"])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
