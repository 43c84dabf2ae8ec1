"""Isolated tools and commands: real processes in real leaves, where this machine has them."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agentsched.cgroups import Isolation, Sandbox, isolation
from agentsched.sdk import ToolDied, arun_command, program, run_command, tool
from agentsched.sdk.tool_runs import say_unenforced
from tests.daemon.serving import until
from tests.sdk import isolated_tools as tools
from tests.sdk.recording import Recording


def needs_memory_limits() -> None:
    with Sandbox.open() as sandbox:
        if not sandbox.capabilities.memory_limit:
            pytest.skip(f"no memory limits on this machine: {sandbox.refused}")


def test_values_go_to_another_process_and_come_back(daemon: Recording) -> None:
    point, pid = tools.shifted(tools.Point(1, 2), by=3)
    assert point == tools.Point(4, 5)
    assert pid != os.getpid()
    assert daemon.named("ToolStarted") == []


def test_a_run_is_reported_as_its_programs_with_what_it_used(daemon: Recording) -> None:
    with program("p", id="p-1"):
        tools.burn(0.3)
    (started,), (finished,) = daemon.named("ToolStarted"), daemon.named("ToolFinished")
    assert (started["program"], started["tool"]) == ("p-1", "burn")
    assert finished["tool_call"] == started["tool_call"]
    assert finished["exit_status"] == 0
    assert finished["wall_s"] >= finished["cpu_s"] * 0.5 >= 0.15


def test_the_function_knows_its_program(daemon: Recording) -> None:
    with program("p", id="p-1"):
        assert tools.whose() == ("p-1", {"x-agentsched-program": "p-1"}, "p-1")
    assert len(daemon.named("ProgramClosed")) == 1


async def test_async_tools_run_side_by_side(daemon: Recording) -> None:
    with program("p", id="p-1"):
        said = await asyncio.gather(*[tools.nap(0.01) for _ in range(2)])
    assert said == ["rested", "rested"]
    finished = daemon.named("ToolFinished")
    assert len({event["tool_call"] for event in finished}) == 2
    assert [event["tool"] for event in daemon.named("ToolStarted")] == ["napper", "napper"]


def test_exceptions_come_back_with_where_they_were_raised(daemon: Recording) -> None:
    with program("p"), pytest.raises(LookupError, match="gone") as raised:
        tools.fail("gone")
    assert "isolated_tools.py" in raised.value.__notes__[0]
    assert [event["exit_status"] for event in daemon.named("ToolFinished")] == [1]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("picky", r"the Picky that it raised \(ab\) cannot go to another process"),
        ("unpicklable", "what it returned cannot go to another process"),
        ("exit", "exited with 7; it said last:\ngoing down"),
    ],
)
def test_no_answer_says_why(how: str, said: str) -> None:
    with pytest.raises(ToolDied, match=said):
        tools.fail(how)


def test_what_it_prints_comes_out_here(capsys: pytest.CaptureFixture[str]) -> None:
    tools.chatter()
    assert capsys.readouterr().out == "héllo from inside\nand an error\n"


def test_a_time_limit_ends_it(daemon: Recording) -> None:
    with program("p"), pytest.raises(TimeoutError, match="oversleep: The command was stopped"):
        tools.oversleep()
    assert [event["exit_status"] for event in daemon.named("ToolFinished")] == [124]


@pytest.mark.cgroups
def test_a_memory_limit_ends_it_and_not_this_process() -> None:
    needs_memory_limits()
    assert tools.hoard(20) == 20 << 20
    with pytest.raises(MemoryError, match="hoard: The kernel killed"):
        tools.hoard(600)


async def test_cancelling_kills_all_that_it_started(daemon: Recording, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with program("p"):
        running = asyncio.create_task(tools.linger(str(mark)))
        await until(mark.exists, "the tool runs")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert [event["exit_status"] for event in daemon.named("ToolFinished")] == [130]
    assert not processes_with(str(mark))


def processes_with(word: str) -> list[str]:
    listed = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return [" ".join(words) for words in listed if word in words]


def test_arguments_that_cannot_go_are_told_before_anything_runs(daemon: Recording) -> None:
    with program("p"), pytest.raises(TypeError, match="arguments cannot go to another process"):
        tools.shifted(lambda: None)  # type: ignore[arg-type]
    assert daemon.named("ToolStarted") == []


def test_functions_that_another_process_cannot_find_are_refused() -> None:
    def inner() -> None: ...

    with pytest.raises(TypeError, match="top level of a module"):
        tool(isolated=True)(inner)
    with pytest.raises(TypeError, match="add isolated=True"):
        tool(memory="1G")
    with pytest.raises(ValueError, match="memory must be bytes, or text"):
        tool(isolated=True, memory="lots")(tools.Point.__eq__)


SCRIPT = """
from agentsched.sdk import tool

class Wallet:
    def __init__(self, coins): self.coins = coins

@tool(isolated=True)
def spend(wallet):
    return Wallet(wallet.coins - 1)
{guard}
print(spend(Wallet(5)).coins)
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_may_have_isolated_tools_if_its_work_is_guarded(tmp_path: Path, guarded: bool) -> None:
    guard = 'if __name__ == "__main__":' if guarded else ""
    body = SCRIPT.format(guard=guard)
    if guarded:
        body = body.replace("\nprint", "\n    print")
    script = tmp_path / "script.py"
    script.write_text(body)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    if guarded:
        assert done.stdout == "4\n", done.stderr
    else:
        assert 'under `if __name__ == "__main__":`' in done.stderr


def test_commands_run_in_leaves_and_are_reported(daemon: Recording, tmp_path: Path) -> None:
    with program("p", id="p-1"):
        result = run_command("echo $WHO in $PWD; exit 3", cwd=str(tmp_path), env={"WHO": "me"}, timeout_s=20)
    assert (result.text, result.exit_status) == (f"me in {tmp_path}\n", 3)
    (started,), (finished,) = daemon.named("ToolStarted"), daemon.named("ToolFinished")
    assert (started["tool"], started["command"], finished["exit_status"]) == ("bash", "echo", 3)
    assert run_command(["echo", "no program"]).text == "no program\n"


async def test_a_cancelled_command_is_killed(daemon: Recording) -> None:
    with program("p"), pytest.raises(TimeoutError):
        await asyncio.wait_for(arun_command("sleep 60"), 0.3)
    assert [event["exit_status"] for event in daemon.named("ToolFinished")] == [130]


def test_limits_that_this_machine_lacks_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    say_unenforced.cache_clear()
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, logger="agentsched.sdk"):
        patch.setenv("AGENTSCHED_BACKEND", "none")
        for _ in range(2):
            assert run_command("true", memory="64M", cpu=1.0).exit_status == 0
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "tools run without what was asked for: memory limit, CPU limit"
    ]


def test_commands_of_an_isolated_program_share_a_disk_that_goes_with_it(
    daemon: Recording, tmp_path: Path
) -> None:
    if why := isolation.missing():
        pytest.skip(why)
    with program("builder", isolation=Isolation(disk_bytes=1 << 20)) as running:
        run_command("echo built > made", cwd=str(tmp_path))
        assert asyncio.run(arun_command("cat made", cwd=str(tmp_path))).text == "built\n"
    assert list(tmp_path.iterdir()) == []
    assert {event["program"] for event in daemon.named("ToolFinished")} == {running.id}
