"""The demo's plan and its parts: who runs when, where, and that nothing outlives it."""

import contextlib
import io
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from agentsched.cgroups import Sandbox, ToolSpec
from agentsched.core.events import CallFinished, ProgramClosed, ToolFinished
from agentsched.workloads import agents, children, cores, demo, tasks, trial
from agentsched.workloads.agents import Agent, Gate, wait_at_gate
from agentsched.workloads.board import Board, Line
from agentsched.workloads.demo import DemoError, Plan


def test_policies_take_turns_at_going_first(tmp_path: Path) -> None:
    plan = Plan(out=tmp_path, rounds=3, policies=("fcfs-lru", "agentsched"))
    assert list(demo.schedule(plan)) == [
        (0, "fcfs-lru"),
        (0, "agentsched"),
        (1, "agentsched"),
        (1, "fcfs-lru"),
        (2, "fcfs-lru"),
        (2, "agentsched"),
    ]


def test_all_policies_of_a_round_get_the_same_programs(tmp_path: Path) -> None:
    plan = Plan(out=tmp_path, agents=12, seed=3)
    chosen = [tasks.load_task(name) for name in plan.tasks]
    first = demo.assign(plan, chosen, 0)
    assert first == demo.assign(plan, chosen, 0)
    assert first != demo.assign(plan, chosen, 1)
    assert len({program for program, _ in first}) == 12
    assert {task.instance_id for _, task in first} == set(plan.tasks)


def test_agents_beyond_one_a_task_go_where_tools_are_light(tmp_path: Path) -> None:
    chosen = [tasks.load_task(name) for name in demo.LIGHT_TASKS]
    given = demo.assign(Plan(out=tmp_path, agents=10), chosen, 0)
    counts = Counter(task.instance_id for _, task in given)
    assert counts == dict.fromkeys(demo.LIGHT_TASKS, 1) | {"python-dotenv-1.2.2-byte-order-mark": 6}
    few = demo.assign(Plan(out=tmp_path, agents=2), chosen, 0)
    assert {task.instance_id for _, task in few} == set(demo.LIGHT_TASKS[:2])


def test_two_agents_of_one_task_share_no_prompt(tmp_path: Path) -> None:
    task = tasks.load_task(demo.LIGHT_TASKS[0])
    one, two = (agents.Agent(f"agent-0{number}", task, tmp_path) for number in (1, 2))
    assert one.problem.endswith(task.problem_statement)
    assert one.problem[:10] != two.problem[:10]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"agents": 0}, "--agents"),
        ({"rounds": 0}, "--rounds"),
        ({"policies": ("nonsense",)}, "nonsense"),
        ({"policies": ("fcfs-lru", "fcfs-lru")}, "--policies"),
        ({"tasks": ()}, "--tasks"),
    ],
)
def test_a_plan_that_cannot_run_names_the_option(
    tmp_path: Path, options: dict[str, object], named: str
) -> None:
    with pytest.raises(DemoError, match=named):
        Plan(out=tmp_path, **options)  # type: ignore[arg-type]


def test_an_unwritable_folder_is_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match="cannot be written"):
        demo.run_demo(Plan(out=tmp_path / "file" / "out"), Console(file=io.StringIO()))


def test_kv_that_holds_no_agent_is_refused_before_anything_starts(tmp_path: Path) -> None:
    plan = Plan(out=tmp_path, agents=1, tasks=("python-dotenv-1.2.2-byte-order-mark",), kv_tokens=100)
    with pytest.raises(DemoError, match="--kv-tokens 100 "):
        demo.run_demo(plan, Console(file=io.StringIO()))


def test_the_gate_holds_agents_until_it_opens(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    through = threading.Event()

    def arrive() -> None:
        wait_at_gate(gate.folder, "p")
        through.set()

    thread = threading.Thread(target=arrive)
    thread.start()
    while gate.waiting() == 0:
        pass
    assert not through.is_set()
    gate.open()
    assert through.wait(10)
    thread.join()
    wait_at_gate(gate.folder, "late")
    assert gate.waiting() == 2


def test_a_process_moves_to_a_core_alone_or_with_all_that_it_started(tmp_path: Path) -> None:
    engine_core, tool_core = cores.choose_cores()
    output = tmp_path / "out"
    parent = children.start(["sh", "-c", "sleep 60 & echo $!; wait"], output=output)
    try:
        while not output.read_text().endswith("\n"):
            pass
        child = int(output.read_text())
        cores.confine(parent.pid, engine_core, descendants=True)
        assert [os.sched_getaffinity(pid) for pid in (parent.pid, child)] == [{engine_core}] * 2
        cores.confine(parent.pid, tool_core)
        assert [os.sched_getaffinity(pid) for pid in (parent.pid, child)] == [{tool_core}, {engine_core}]
    finally:
        os.killpg(parent.pid, 9)
        parent.wait()


def test_ending_children_kills_what_ignores_being_asked(tmp_path: Path) -> None:
    output = tmp_path / "out"
    child = children.start(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], output=output)
    while "ready" not in output.read_text():
        pass
    children.end([child], grace_s=0.2)
    assert child.returncode == -9
    children.end([child])


def test_hidden_tests_end_when_grading_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Ctrl-C: what other threads wait for is ended, hang as it may."""
    task = tasks.load_task(tasks.task_ids()[0])
    agents = [Agent(program, task, tmp_path / program) for program in ("breaks", "hangs")]

    def grade(task: object, tree: Path, environment: Path, sandbox: Sandbox) -> None:
        if tree.parent.name == "hangs":
            sandbox.run(ToolSpec(command="sleep 300"))
        while not sandbox.leaves():
            pass
        raise tasks.TaskError("broken")

    monkeypatch.setattr(trial, "grade", grade)
    begin = time.monotonic()
    with pytest.raises(tasks.TaskError):
        trial._grades(agents, tmp_path)
    assert time.monotonic() - begin < 60


def test_without_a_terminal_the_board_prints_plain_lines() -> None:
    text = io.StringIO()
    with Board(Console(file=text, width=200), "round 1") as board:
        board.say("copying trees")
        board.show([Line("p1", "t", 3, 13, "tool"), Line("p2", "t", 13, 13, "done")])
        board.show([Line("p1", "t", 4, 13, "tool")])
    lines = text.getvalue().splitlines()
    assert lines[0] == "round 1: copying trees"
    assert lines[1].endswith("16 of 26 calls; 1 done, 1 tool")
    assert len(lines) == 2


def test_two_agents_run_through_everything(tmp_path: Path) -> None:
    """Unmodified mini-swe-agent, daemon, embedded engine and sandboxes, to graded results."""
    pytest.importorskip("torch")
    pytest.importorskip("minisweagent")
    name = "python-dotenv-1.2.2-byte-order-mark"
    try:
        task = tasks.load_task(name)
        tasks.fetch_sdist(task, tasks.cache_folder())
        tasks.ensure_environment([task], tasks.cache_folder())
    except tasks.TaskError as error:
        pytest.skip(f"the task is neither cached nor to be fetched: {error}")
    text = io.StringIO()
    plan = Plan(out=tmp_path / "out", agents=2, tasks=(name,), rounds=1, policies=("agentsched",))
    outcome = demo.run_demo(plan, Console(file=text, width=200))
    assert outcome.tasks == demo.TaskCount(total=2, passed=2), outcome.results

    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["tasks"] == {"total": 2, "passed": 2}
    (run,) = written["runs"]
    turns = len(tasks.load_turns(name))
    assert (run["policy"], run["programs"], run["unfinished"]) == ("agentsched", 2, 0)
    assert run["tool_calls"] == 2 * turns
    assert run["tool_cpu_s"] > 1
    assert run["context_tokens"] > 20_000
    assert "agentsched" in (tmp_path / "out" / "report.html").read_text()

    entries = outcome.runs[0].entries
    asked = [
        call.tool_call
        for entry in entries
        if isinstance(entry.event, CallFinished)
        for call in entry.event.tool_calls
    ]
    finished = [entry.event for entry in entries if isinstance(entry.event, ToolFinished)]
    assert sorted(asked) == sorted(event.tool_call for event in finished)
    assert [entry.event.program for entry in entries if isinstance(entry.event, ProgramClosed)]
    processes = _command_lines()
    assert not [line for line in processes if str(tmp_path).encode() in line]


def _command_lines() -> list[bytes]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended while we looked
            lines.append(path.read_bytes())
    return lines
