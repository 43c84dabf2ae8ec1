"""The examples run by themselves, and the daemon sees in them what their frameworks did."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

CALLS = "calls the model"


def did(program: str, *lines: str) -> list[str]:
    return [f"{program}: {line}" for line in lines]


def ran(tool: str, status: int = 0) -> tuple[str, str]:
    return f"runs the tool {tool}", f"its tool took _ s, status {status}"


def child_of(program: str) -> str:
    return f"begins, a child of {program}"


# Example -> the package that it needs, and what the daemon must tell of each program, in order.
STORIES: dict[str, tuple[str, list[list[str]]]] = {
    "plain_python": (
        "openai",
        [
            did("lead", "begins", CALLS, *ran("look_up"), CALLS, "has ended"),
            did("helper", child_of("lead"), CALLS, *ran("count_primes"), CALLS, "has ended"),
        ],
    ),
    "openai_agents_sdk": (
        "agents",
        [
            did("lead", "begins", CALLS, *ran("ask_librarian"), CALLS, *ran("look_up"), CALLS, "has ended"),
            did(
                "librarian",
                *(child_of("lead"), CALLS, *ran("look_up"), CALLS, *ran("look_up"), CALLS, "has ended"),
            ),
        ],
    ),
    "langgraph_agents": (
        "langgraph",
        [
            did("lead", "begins", CALLS, *ran("look_up"), CALLS, "has ended"),
            did("librarian", child_of("lead"), CALLS, *ran("look_up"), CALLS, "has ended"),
        ],
    ),
    "smolagents_team": (
        "smolagents",
        [
            did("lead", "begins", CALLS, *ran("librarian"), CALLS, *ran("final_answer"), "has ended"),
            did(
                "librarian",
                child_of("lead"),
                CALLS,
                *ran("look_up"),
                CALLS,
                *ran("final_answer"),
                "has ended",
            ),
            did("coder", "begins", *(CALLS, *ran("python_interpreter")) * 2, "has ended"),
        ],
    ),
    "mini_swe_agent_shell": (
        "minisweagent",
        [did("mini", "begins", CALLS, *ran("bash"), CALLS, *ran("bash"), "has ended")],
    ),
    "mcp_tools": ("mcp", [did("reader", "begins", *ran("look_up"), *ran("burn", 1), "has ended")]),
}


def test_every_example_has_a_story() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(STORIES) | {"local_daemon"}


@pytest.mark.parametrize("example", STORIES)
def test_an_example_runs_by_itself(example: str, tmp_path: Path) -> None:
    package, stories = STORIES[example]
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENT")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{example}.py")],
        cwd=tmp_path,
        env=kept | {"MSWEA_GLOBAL_CONFIG_DIR": str(tmp_path), "MSWEA_CONFIGURED": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    told = re.findall(r"  daemon \| (.*)", done.stderr)
    plain = [re.sub(r"-[0-9a-f]{12}", "", re.sub(r"\d+\.\d\d s", "_ s", line)) for line in told]
    found = {line.partition(":")[0]: [] for line in plain}  # type: dict[str, list[str]]
    for line in plain:
        found[line.partition(":")[0]].append(line)
    # Tools are reported beside the calls, so the end of one may come after the call that its result is for.
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, stories))
    for lines in found.values():
        kinds = [line.partition(": ")[2].partition(" the tool ")[0].partition(" took ")[0] for line in lines]
        assert kinds[0].startswith("begins")
        assert kinds[-1] == "has ended"
        running = accumulate((kind == "runs") - (kind == "its tool") for kind in kinds)
        assert min(running) >= 0, "a tool begins before it ends"
