"""``agentsched wrap`` as its user sees it: real agents (small ones), real leaves, a real terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from agentsched.cgroups import Sandbox
from agentsched.cgroups.bpf.facts import Event, Forked
from agentsched.cgroups.bpf.polled import PolledSource
from agentsched.cgroups.wrapping.agent import Agent
from agentsched.sdk.wrapped import Silence
from tests.cgroups.looking import eventually, is_running
from tests.wrap.conftest import MAIN, environment, wrap

pytestmark = pytest.mark.cgroups

WHERE = "sed -n 's/^0:://p' /proc/self/cgroup"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_status_is_the_agents(words: list[str], status: int, cgroups: None) -> None:
    assert wrap("--sensing", "polling", "--", *words).returncode == status


def test_standard_streams_are_the_agents_own(cgroups: None) -> None:
    done = wrap("--sensing", "polling", "--", "sh", "-c", 'cat; echo "$@" >&2', "sh", "--log", stdin="in\n")
    assert (done.returncode, done.stdout) == (0, "in\n")
    assert done.stderr.splitlines()[-1] == "--log"


def test_each_command_has_a_leaf_of_its_own_and_the_agent_another(sensing: str, tmp_path: Path) -> None:
    # the agent looks where it is by builtins: what it starts is a command
    place = "while read -r line; do case $line in 0::*) echo ${line#0::};; esac; done < /proc/$$/cgroup"
    moved = f"until {WHERE} | grep -qv /agent=; do sleep 0.05; done"
    agent = f'{place}; for i in 1 2; do sh -c "{moved}; {WHERE}; {WHERE}; : $i"; done'
    log = tmp_path / "log"
    done = wrap("--sensing", sensing, "--log", str(log), "--", "bash", "-c", agent)
    own, *commands = (line.rpartition("/")[2] for line in done.stdout.split())
    assert own.startswith("agent=")
    assert len(commands) == 4
    assert commands[0] == commands[1] != commands[2] == commands[3]
    assert own not in commands
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [" ".join(line["words"]).rpartition(" : ")[2] for line in lines] == ["1", "2"]
    assert {line["tool_call"] for line in lines} == {None}


def test_what_commands_leave_behind_ends_with_the_agent(cgroups: None, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    left = f"setsid sh -c 'echo $$ > {pid}; exec sleep 600' > /dev/null 2>&1 &"
    agent = (
        f'sh -c "{left} until [ -s {pid} ]; do sleep 0.05; done"; test -d /proc/$(cat {pid}) && echo alive'
    )
    agent = agent.replace("$$", "\\$\\$")
    done = wrap("--sensing", "polling", "--", "bash", "-c", agent)
    assert done.stdout == "alive\n", done.stderr
    assert not is_running(int(pid.read_text()))


class NeverQuiet(PolledSource):
    """As of an agent that left something behind which makes process after process."""

    def events(self, timeout_s: float) -> list[Event]:
        return super().events(0.0) or [Forked(at_s=time.monotonic(), leaf=0, pid=1, parent=1)]


def test_the_end_does_not_wait_for_what_is_left_behind_to_be_quiet(cgroups: None) -> None:
    with Sandbox.open("busy") as sandbox:
        agent = Agent(sandbox, NeverQuiet(), Silence(None))
        pid = agent.start(["sh", "-c", "setsid sleep 600 & exit 3"], os.environ)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        agent.close()
        assert sandbox.leaves() == {}


def test_signals_to_it_are_passed_on(cgroups: None) -> None:
    agent = "trap 'echo got; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        [*MAIN, "--sensing", "polling", "--", "bash", "-c", agent],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.read() == "got\n"
        assert process.wait(20) == 9


def test_the_terminal_is_the_agents(cgroups: None) -> None:
    """Ctrl-C reaches it from the terminal, once, and it sees a terminal."""
    agent = (
        "test -t 0 && test -t 1 && echo terminal; trap 'n=$((n+1))' INT; echo ready; "
        'while [ -z "$n" ]; do sleep 0.05; done; sleep 0.3; echo interrupted $n; exit 4'
    )
    pid, master = pty.fork()
    if pid == 0:
        os.execve(MAIN[0], [*MAIN, "--sensing", "polling", "--", "bash", "-c", agent], environment())
    said = b""

    def heard(words: bytes) -> bool:
        nonlocal said
        try:
            said += os.read(master, 4096)
        except OSError:
            return True  # the other end is gone
        return words in said

    assert eventually(lambda: heard(b"ready"), 60)
    os.write(master, b"\x03")
    assert eventually(lambda: heard(b"interrupted"), 60)
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert b"terminal" in said
    assert b"interrupted 1" in said
    assert os.waitstatus_to_exitcode(status) == 4


def test_a_daemon_that_does_not_answer_is_said_once_and_the_agent_runs(cgroups: None) -> None:
    agent = 'echo "${ANTHROPIC_BASE_URL-unset}"'
    done = wrap("--sensing", "polling", "--daemon", "http://127.0.0.1:9", "--", "sh", "-c", agent)
    assert (done.returncode, done.stdout) == (0, "unset\n")
    assert done.stderr.count("no daemon answers at http://127.0.0.1:9") == 1


def test_without_cgroups_the_agent_runs_all_the_same() -> None:
    done = wrap("--", "sh", "-c", "echo $AGENT_RESOURCE_HINT; exit 3", AGENTSCHED_BACKEND="none")
    assert done.returncode == 3
    assert "no cgroups here" in done.stderr


def test_a_hint_is_told_to_commands_and_a_wrong_one_refused(cgroups: None) -> None:
    words = ("--sensing", "polling", "--hint", "cpu:low", "--", "sh", "-c", "echo $AGENT_RESOURCE_HINT")
    assert wrap(*words).stdout == "cpu:low\n"
    done = wrap("--hint", "lots", "true")
    assert (done.returncode, "'lots' is not" in done.stderr) == (2, True)
