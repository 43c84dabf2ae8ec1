"""How tool calls run and end: output, status, time-outs, leftovers, cancellation. On every backend."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentsched.cgroups import (
    Cancelled,
    CommandUnusable,
    Leaf,
    Limits,
    Sandbox,
    SandboxError,
    SpecRefused,
    ToolSpec,
    pump,
)
from tests.cgroups.looking import eventually, is_running, own_leaves

# Leaves its session, and its parent's sight, by a double fork; the survivor's pid is in the file.
ESCAPE = """
setsid sh -c 'sh -c "echo \\$\\$ > {file}; exec sleep 300" & exit 0' > /dev/null
while [ ! -s {file} ]; do :; done
"""


@pytest.fixture(params=[pytest.param("auto", marks=pytest.mark.cgroups), "none"])
def any_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox.open(request.node.name, backend=request.param) as opened:
        yield opened
    assert own_leaves() == []


def test_status_and_merged_output(any_sandbox: Sandbox) -> None:
    result = any_sandbox.run(ToolSpec(command="echo out; echo err >&2; exit 7", tool_call="c1"))
    assert (result.exit_status, result.text, result.tool_call) == (7, "out\nerr\n", "c1")
    assert result.program == any_sandbox.program


def test_a_signal_is_128_and_its_number(any_sandbox: Sandbox) -> None:
    result = any_sandbox.run(ToolSpec(command="kill -TERM $$"))
    assert (result.exit_status, result.reason) == (128 + 15, "killed by SIGTERM")


def test_125_of_the_command_itself_is_no_failure_of_the_sandbox(any_sandbox: Sandbox) -> None:
    assert any_sandbox.run(ToolSpec(command="exit 125")).exit_status == 125


def test_arguments_environment_and_folder_arrive_unchanged(any_sandbox: Sandbox, tmp_path: Path) -> None:
    odd = {"PATH": os.environ["PATH"], "with-dash": "a b", "EMPTY": "", "QUOTE": "'\"$x\n--"}
    spec = ToolSpec(argv=["env", "-0"], env=odd, cwd=str(tmp_path))
    seen = dict(entry.split("=", 1) for entry in any_sandbox.run(spec).text.split("\0") if entry)
    assert {name: seen.get(name) for name in odd} == odd
    words = ["--", "", "a b", "$HOME", "*", "-n"]
    assert any_sandbox.run(ToolSpec(argv=["printf", "%s|", *words])).text == "--||a b|$HOME|*|-n|"
    assert any_sandbox.run(ToolSpec(argv=["pwd", "-P"], cwd=str(tmp_path))).text == f"{tmp_path.resolve()}\n"


def test_much_output_keeps_head_and_tail(any_sandbox: Sandbox) -> None:
    heard = bytearray()
    spec = ToolSpec(command="seq 1 200000", max_output_bytes=1000)
    result = any_sandbox.run(spec, on_output=heard.extend)
    assert result.output.startswith(b"1\n2\n")
    assert result.output.endswith(b"199999\n200000\n")
    assert b"bytes dropped]" in result.output
    assert result.dropped_output_bytes == len(heard) - 1000
    assert heard == b"".join(b"%d\n" % n for n in range(1, 200001))


def test_a_time_out_kills_what_left_session_and_parent(any_sandbox: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    spec = ToolSpec(command=ESCAPE.format(file=file) + "echo waiting; sleep 300", timeout_s=1.5)
    result = any_sandbox.run(spec)
    assert result.timed_out
    assert (result.exit_status, result.reason, result.text) == (124, "timed out after 1.5 s", "waiting\n")
    assert eventually(lambda: not is_running(int(file.read_text())))


def test_what_is_left_at_the_end_is_killed_and_cannot_hold_the_output(
    any_sandbox: Sandbox, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    # the survivor has stdout open, so waiting for the output's end would take 300 s
    command = ESCAPE.format(file=file).replace("> /dev/null", "") + "echo main is done"
    result = any_sandbox.run(ToolSpec(command=command))
    assert (result.exit_status, result.text) == (0, "main is done\n")
    assert result.usage.wall_s < 30
    assert eventually(lambda: not is_running(int(file.read_text())))


async def test_cancelling_kills_the_tree_before_it_is_done(any_sandbox: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    started = asyncio.Event()
    spec = ToolSpec(command=ESCAPE.format(file=file) + "echo ready; sleep 300")
    task = asyncio.create_task(any_sandbox.arun(spec, on_output=lambda chunk: started.set()))
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert any_sandbox.leaves() == {}
    assert eventually(lambda: not is_running(int(file.read_text())))


def test_an_exception_in_a_callback_kills_the_tree(any_sandbox: Sandbox) -> None:
    pids: list[int] = []

    def interrupt(leaf: Leaf, pid: int) -> None:
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        any_sandbox.run(ToolSpec(argv=["sleep", "300"]), on_start=interrupt)
    assert not is_running(pids[0])
    assert any_sandbox.leaves() == {}


async def test_fifty_at_once_leave_nothing(any_sandbox: Sandbox) -> None:
    specs = [ToolSpec(command=f"sleep 0.05 & echo {n}", tool_call="same id") for n in range(50)]
    results = await asyncio.gather(*(any_sandbox.arun(spec) for spec in specs))
    assert [result.text for result in results] == [f"{n}\n" for n in range(50)]
    assert any_sandbox.leaves() == {}


def test_without_pidfds_it_works_the_same(any_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "_open_pidfd", lambda pid: None)
    assert any_sandbox.run(ToolSpec(command="seq 1 3; exit 4")).text == "1\n2\n3\n"
    late = any_sandbox.run(ToolSpec(command="echo x; sleep 300", timeout_s=0.3))
    assert (late.timed_out, late.text) == (True, "x\n")


def test_closing_ends_what_runs(any_sandbox: Sandbox) -> None:
    pids: queue.Queue[int] = queue.Queue()
    ends: list[str] = []

    def run() -> None:
        try:
            any_sandbox.run(ToolSpec(argv=["sleep", "300"]), on_start=lambda leaf, pid: pids.put(pid))
        except Cancelled as error:
            ends.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    pid = pids.get(timeout=10)
    any_sandbox.close()
    thread.join(10)
    assert len(ends) == 1
    assert "closed" in ends[0]
    assert not is_running(pid)
    with pytest.raises(SandboxError, match="is closed"):
        any_sandbox.run(ToolSpec(argv=["true"]))


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"argv": ["no-such-command"]}, CommandUnusable, "command not found: no-such-command"),
        ({"argv": ["/etc/passwd"]}, CommandUnusable, "not executable: /etc/passwd"),
        ({"argv": ["/etc"]}, CommandUnusable, "not executable: /etc"),
        ({"argv": ["true"], "cwd": "/no/such"}, SpecRefused, "cwd: '/no/such' is not a folder"),
        ({}, SpecRefused, "exactly one of argv and command"),
        ({"argv": ["true"], "command": "true"}, SpecRefused, "exactly one of argv and command"),
        ({"argv": "true"}, SpecRefused, "argv must be a sequence"),
        ({"argv": ["a\0b"]}, SpecRefused, "NUL"),
        ({"command": "true", "timeout_s": 0}, SpecRefused, "timeout_s must be a positive"),
        ({"command": "true", "timeout_s": float("nan")}, SpecRefused, "timeout_s must be a positive"),
        ({"command": "true", "env": {"A=B": "c"}}, SpecRefused, "env: 'A=B'"),
        ({"command": "true", "max_output_bytes": -1}, SpecRefused, "max_output_bytes"),
    ],
)
def test_bad_requests_are_refused_with_the_field_at_fault(
    plain: Sandbox, fields: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plain.run(ToolSpec(**fields))  # type: ignore[arg-type]
    assert plain.leaves() == {}


def test_too_long_an_argument_is_an_error_and_leaves_nothing(any_sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match=r"[Aa]rgument list too long"):
        any_sandbox.run(ToolSpec(argv=["true", "x" * (1 << 22)]))
    assert any_sandbox.leaves() == {}


def test_the_none_backend_says_what_it_did_not_enforce(plain: Sandbox) -> None:
    result = plain.run(ToolSpec(argv=["true"], limits=Limits(memory_bytes=1 << 30, pids=9)))
    assert result.unenforced == ("memory limit", "limit of processes")
    assert not plain.capabilities.whole_tree
    assert plain.capabilities.lost


def test_the_none_backend_counts_the_main_process(plain: Sandbox) -> None:
    code = "import time\nx = bytearray(64 << 20)\nwhile time.process_time() < 0.3: pass"
    usage = plain.run(ToolSpec(argv=["python3", "-S", "-c", code])).usage
    assert 0.28 <= usage.cpu_s <= 0.8
    assert usage.peak_memory_bytes >= 64 << 20


def test_wall_time_is_that_of_the_command(any_sandbox: Sandbox) -> None:
    begun = time.monotonic()
    usage = any_sandbox.run(ToolSpec(argv=["sleep", "0.3"])).usage
    assert 0.3 <= usage.wall_s <= time.monotonic() - begun
