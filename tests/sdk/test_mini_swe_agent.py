"""The mini-swe-agent environment: runs commands as mini expects, and reports what they did."""

import gc
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("minisweagent")

from minisweagent.agents.default import DefaultAgent
from minisweagent.environments import get_environment
from minisweagent.environments.local import LocalEnvironment
from minisweagent.exceptions import Submitted

from agentsched.cgroups import isolation
from agentsched.sdk.mini_swe_agent import CLOSING, SandboxEnvironment
from agentsched.sdk.reporting import Reporter, use_reporter
from tests.sdk.recording import Recording

BURN = """python3 -c '
import time
kept, end = bytearray(60 << 20), time.process_time() + 0.3
while time.process_time() < end: pass'"""


@pytest.fixture
def environment(daemon: Recording, tmp_path: Path) -> SandboxEnvironment:
    return SandboxEnvironment(cwd=str(tmp_path), program="p-1", timeout=20, env={"GREETING": "hello"})


def test_a_command_runs_in_its_folder_and_its_run_is_reported(
    environment: SandboxEnvironment, daemon: Recording, tmp_path: Path
) -> None:
    action = {"command": "echo $GREETING; pwd; echo bad >&2; exit 3", "tool_call_id": "call_1"}
    output = environment.execute(action)
    assert output == {"output": f"hello\n{tmp_path}\nbad\n", "returncode": 3, "exception_info": ""}
    (started,), (finished,) = daemon.named("ToolStarted"), daemon.named("ToolFinished")
    assert started == {
        "event": "ToolStarted",
        "tool_call": "call_1",
        "program": "p-1",
        "tool": "bash",
        "command": "echo",
    }
    assert (finished["tool_call"], finished["exit_status"]) == ("call_1", 3)


def test_the_report_agrees_with_what_the_command_burnt(
    environment: SandboxEnvironment, daemon: Recording
) -> None:
    assert environment.execute({"command": BURN, "tool_call_id": "call_1"})["returncode"] == 0
    (finished,) = daemon.named("ToolFinished")
    assert 0.3 <= finished["cpu_s"] < 2
    assert finished["wall_s"] >= 0.3
    assert finished["peak_memory_bytes"] > 60 << 20


def test_a_timeout_answers_as_minis_own_environment_does(
    environment: SandboxEnvironment, daemon: Recording, tmp_path: Path
) -> None:
    action = {"command": "echo before; sleep 30", "tool_call_id": "call_1"}
    ours = environment.execute(action, timeout=1)
    theirs = LocalEnvironment(cwd=str(tmp_path)).execute(action, timeout=1)
    note = ours["exception_info"].removeprefix(theirs["exception_info"])
    assert ours | {"exception_info": theirs["exception_info"]} == theirs
    assert note.startswith("\nagentsched: The command was stopped at its time limit of 1 s")
    assert [event["exit_status"] for event in daemon.named("ToolFinished")] == [124]


def test_submitting_raises_and_closes_the_program_once(
    environment: SandboxEnvironment, daemon: Recording
) -> None:
    command = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && echo the patch"
    with pytest.raises(Submitted) as raised:
        environment.execute({"command": command, "tool_call_id": "call_9"})
    assert raised.value.messages[0]["extra"] == {"exit_status": "Submitted", "submission": "the patch\n"}
    assert len(daemon.named("ProgramClosed")) == 1


def test_an_agent_that_goes_away_closes_its_program(daemon: Recording) -> None:
    environment = SandboxEnvironment(program="p-2")
    environment.execute({"command": "true"})
    del environment
    gc.collect()
    all_closed()
    assert [event["program"] for event in daemon.named("ProgramClosed")] == ["p-2"]


def test_the_collector_may_come_while_sandboxes_are_locked(daemon: Recording) -> None:
    environment = SandboxEnvironment(program="p-3")
    environment.execute({"command": "true"})
    lock = environment._sandbox._lock
    with lock:
        del environment
        gc.collect()
    all_closed()
    assert [event["program"] for event in daemon.named("ProgramClosed")] == ["p-3"]


def test_a_late_end_is_told_to_the_daemon_of_its_program(daemon: Recording) -> None:
    environment = SandboxEnvironment(program="p-4")
    with Recording() as other:
        reporter = Reporter(other.url)
        use_reporter(reporter)
        other.flush = reporter.flush
        del environment
        gc.collect()
        all_closed()
        assert other.named("ProgramClosed") == []
    assert [event["program"] for event in daemon.named("ProgramClosed")] == ["p-4"]


def all_closed() -> None:
    """Wait for programs whose environments are gone."""
    for thread in threading.enumerate():
        if thread.name == CLOSING:
            thread.join()


def test_a_folder_that_is_not_there_is_told_to_the_model(environment: SandboxEnvironment) -> None:
    output = environment.execute({"command": "true", "tool_call_id": "c"}, cwd="/no/such/folder")
    assert output["returncode"] != 0
    assert "/no/such/folder" in output["output"] + output["exception_info"]


class _Scripted:
    """A model of mini-swe-agent that asks for given commands."""

    config: Any = None

    def __init__(self, commands: list[str]) -> None:
        self.commands = commands

    def query(self, messages: list[dict[str, str]], **_kwargs: Any) -> dict[str, Any]:
        action = {"command": self.commands.pop(0), "tool_call_id": f"call_{len(self.commands)}"}
        return {"role": "assistant", "content": "", "extra": {"actions": [action]}}

    def format_message(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    def format_observation_messages(
        self,
        message: dict[str, Any],
        outputs: list[dict[str, Any]],
        template_vars: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        return [{"role": "tool", "content": output["output"]} for output in outputs]

    def get_template_vars(self, **_kwargs: Any) -> dict[str, Any]:
        return {}

    def serialize(self) -> dict[str, Any]:
        return {}


def test_minis_own_agent_runs_in_it(daemon: Recording, tmp_path: Path) -> None:
    environment = get_environment(
        {
            "environment_class": "agentsched.sdk.mini_swe_agent.SandboxEnvironment",
            "cwd": str(tmp_path),
            "program": "p-3",
        }
    )
    model = _Scripted(["echo one > made.txt", "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; cat made.txt"])
    agent = DefaultAgent(
        model, environment, system_template="{{system}}", instance_template="{{task}} in {{cwd}}"
    )
    assert agent.run("a task") == {"exit_status": "Submitted", "submission": "one\n"}
    assert agent.messages[1]["content"] == f"a task in {tmp_path}"
    assert agent.serialize()["info"]["config"]["program"] == "p-3"
    assert [event["tool_call"] for event in daemon.named("ToolStarted")] == ["call_1", "call_0"]


def test_progress_and_hints_of_a_running_command_are_reported(
    environment: SandboxEnvironment, daemon: Recording
) -> None:
    script = "for n in 1 2 3 4 5 6 7 8; do echo [$n/8] step; sleep 0.15; done"
    command = f"AGENT_RESOURCE_HINT=memory:64M sh -c '{script}'"
    assert environment.execute({"command": command, "tool_call_id": "c"})["returncode"] == 0
    assert [event["expected_memory_bytes"] for event in daemon.named("ToolStarted")] == [64 << 20]
    shares = [event["done_fraction"] for event in daemon.named("ToolProgressed")]
    assert len(shares) >= 3
    assert shares == sorted(shares)


def test_isolated_commands_leave_the_disk_as_it_was(daemon: Recording, tmp_path: Path) -> None:
    if why := isolation.missing():
        pytest.skip(why)
    environment = SandboxEnvironment(cwd=str(tmp_path), isolation={"disk_bytes": 1 << 20, "network": False})
    environment.execute({"command": "echo made > file"})
    assert environment.execute({"command": "cat file"})["output"] == "made\n"
    assert list(tmp_path.iterdir()) == []
    assert environment.serialize()["info"]["config"]["environment"]["isolation"] == {
        "disk_bytes": 1 << 20,
        "network": False,
    }
