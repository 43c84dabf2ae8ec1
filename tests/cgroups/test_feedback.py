"""Hints up, and what an agent is told of a call that ended."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.cgroups import Ending, Hint, Level, Limits, Sandbox, SpecRefused, ToolSpec, Usage
from agentsched.cgroups.contract import Pressure
from agentsched.cgroups.feedback import Seen, feedback
from agentsched.cgroups.hints import VARIABLE, hint_of, of_mcp
from agentsched.sdk.mcp import MCP_FEEDBACK, with_feedback


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("memory:high,cpu:low", Hint(memory=Level.HIGH, cpu=Level.LOW)),
        (" Memory:2G , time:5m ", Hint(memory_bytes=2 << 30, time_s=300.0)),
        ("memory:512MiB,cpu:1.5,time:90", Hint(memory_bytes=512 << 20, cpu_cores=1.5, time_s=90.0)),
        ("time:high", Hint(time=Level.HIGH)),
    ],
)
def test_hints_are_levels_or_amounts(text: str, hint: Hint) -> None:
    assert Hint.parse(text) == hint


@pytest.mark.parametrize("text", ["lots", "memory", "memory:0", "disk:1G", "cpu:1,cpu:high", "time:-1", ","])
def test_a_hint_that_cannot_be_read_says_how_to_write_it(text: str) -> None:
    with pytest.raises(SpecRefused, match=r"memory:2G|given twice"):
        Hint.parse(text)


def test_where_a_hint_comes_from() -> None:
    written = ToolSpec(command=f"{VARIABLE}=memory:1G pytest -q")
    assert hint_of(written, {VARIABLE: "cpu:low"}) == (Hint(memory_bytes=1 << 30), "")
    assert hint_of(ToolSpec(command="pytest"), {VARIABLE: "cpu:low"}) == (Hint(cpu=Level.LOW), "")
    given_ = ToolSpec(command=f"{VARIABLE}=memory:1G pytest", hint=Hint(cpu=Level.HIGH))
    assert hint_of(given_, {}) == (Hint(cpu=Level.HIGH), "")
    hint, problem = hint_of(ToolSpec(command=f"{VARIABLE}=lots pytest"), {})
    assert hint is None
    assert "'lots' is not" in problem


def test_the_hint_of_an_mcp_call() -> None:
    assert of_mcp({"_meta": {"agentsched/hint": "time:90s"}}) == (Hint(time_s=90.0), "")
    assert of_mcp({"name": "bash"}) == (None, "")
    assert of_mcp({"_meta": {"agentsched/hint": 3}})[0] is None


@given(st.text(max_size=60))
def test_any_hint_is_read_or_refused(text: str) -> None:
    try:
        Hint.parse(text)
    except SpecRefused:
        return


def seen(ending: Ending, **more: object) -> Seen:
    used = Usage(cpu_s=20.0, peak_memory_bytes=300 << 20, memory_bytes=0, wall_s=30.0)
    return msgspec.structs.replace(Seen(ending=ending, exit_status=1, usage=used), **more)


def test_nothing_is_said_of_a_call_that_ended_by_itself() -> None:
    told = feedback(ToolSpec(command="pytest"), seen(Ending.EXITED))
    assert (told.note, told.advice, told.ending) == ("", (), Ending.EXITED)


def test_a_time_limit_tells_how_far_it_came_and_what_to_run_instead() -> None:
    spec = ToolSpec(command="cd x && python -m pytest", timeout_s=30)
    told = feedback(spec, seen(Ending.TIME_LIMIT, done_fraction=0.4, progress_source="40 of 100 tests"))
    assert told.needs_s == pytest.approx(75.0)
    assert told.note == (
        "The command was stopped at its time limit of 30 s, about 40% done (40 of 100 tests); at this pace "
        "the whole takes about 75 s. Try: run fewer tests at a time: one file, or some by name "
        "(pytest tests/test_x.py -k NAME); or stop at the first failure (pytest -x)."
    )


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("make -j8", "make -j2, or -j1"),
        ("cargo build", "cargo build -j 1"),
        ("pytest -n 4", "leave out -n"),
        ("npm test", "--runInBand"),
        ("python train.py", "a smaller part"),
    ],
)
def test_a_memory_limit_is_answered_by_the_kind_of_command(command: str, advice: str) -> None:
    spec = ToolSpec(command=command, limits=Limits(memory_bytes=1 << 30))
    told = feedback(spec, seen(Ending.MEMORY_LIMIT))
    assert "at its memory limit of 1.0 GiB" in told.note
    assert advice in told.note


def test_one_killed_from_outside_is_told_to_say_what_it_needs() -> None:
    told = feedback(ToolSpec(command="make"), seen(Ending.KILLED))
    assert "killed from outside, having used 300 MiB" in told.note
    assert f"{VARIABLE}=memory:4G" in told.note


def test_what_slowed_a_call_is_said_if_it_was_much() -> None:
    spec = ToolSpec(command="make", limits=Limits(cpu_cores=0.5))
    slow = Usage(cpu_s=15.0, peak_memory_bytes=1, memory_bytes=0, wall_s=30.0, throttled_s=14.0)
    waited = Pressure(cpu_s=0.0, memory_s=12.0, io_s=0.0)
    told = feedback(spec, seen(Ending.EXITED, usage=slow, pressure=waited))
    assert told.slowed == (
        "its CPU limit of 0.5 cores held it back for 14 s",
        "it waited 12 s for memory",
    )


def test_a_hint_that_could_not_be_read_is_said() -> None:
    told = feedback(ToolSpec(command="make"), seen(Ending.EXITED, hint_problem="hint 'x' is wrong"))
    assert told.note == "Hint 'x' is wrong."


def test_a_real_timeout_tells_and_its_output_is_not_lost_in_a_buffer(plain: Sandbox, tmp_path: Path) -> None:
    script = "python3 -m unittest -v test_slow"
    code = "import time, unittest\nclass T(unittest.TestCase):\n"
    code += "".join(f"    def test_{n}(self): time.sleep({0 if n < 3 else 60})\n" for n in range(5))
    command = f"printf '%s' \"$CODE\" > test_slow.py && {script}"
    env = os.environ | {"CODE": code, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    result = plain.run(ToolSpec(command=command, cwd=str(tmp_path), env=env, timeout_s=2))
    assert result.timed_out
    assert "test_2 (test_slow.T.test_2) ... ok" in result.text
    assert result.feedback.ending is Ending.TIME_LIMIT
    assert "python -m unittest package.test_module" in result.feedback.note
    answer = with_feedback({"content": [{"type": "text", "text": result.text}]}, result)
    assert answer["isError"] is True
    assert answer["content"][-1]["text"].startswith("agentsched: The command was stopped")
    assert answer["_meta"][MCP_FEEDBACK]["ending"] == "time limit"


@pytest.mark.cgroups
def test_a_real_cpu_limit_is_seen_as_throttling(sandbox: Sandbox) -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass"
    limits = Limits(cpu_cores=0.1)
    result = sandbox.run(ToolSpec(argv=(sys.executable, "-S", "-c", code), limits=limits))
    assert result.usage.throttled_s > 0.5
    assert "Its CPU limit of 0.1 cores held it back" in result.feedback.note
