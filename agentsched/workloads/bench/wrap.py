"""Does ``agentsched wrap`` know which tool call a command is?

Real, unmodified clients (Claude Code, Codex) run under ``agentsched wrap`` against a real daemon, several at
the same time. The simulated model asks for commands of many forms (pipes, quotes, here-documents, ``cd`` and
environments before them, long ones), two in one answer. Every command has a mark that no other one of its run
has, and that all runs have alike, so the commands of one agent look like those of the others. What ``wrap``
took each command for (``--log``) is then held against the tool call that has its mark, and is of its run.

Right: that tool call. Wrong: another one. Missed: a tool call whose command was not found. Both ways of
seeing commands are measured: by BPF, and by polling with shims for shells. Told apart: how long a command ran
before it was in its leaf.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentsched.daemon.identity import Identities
from agentsched.engines.byte_frontend import call_text
from agentsched.engines.frontend import ChatRequest
from agentsched.workloads.bench import _found
from agentsched.workloads.bench.identity import served
from agentsched.workloads.live_clients import Driver, Run, node_clients
from agentsched.workloads.summary import percentile

RESULT = Path("out/bench/wrap.json")
AT_ONCE = 2
"""Commands in one answer."""

FORMS = (
    "echo {mark}",
    "cd /tmp && echo {mark} | cat",
    """echo 'it'\\''s {mark}' "and \\"{mark}\\"" | wc -c""",
    "python3 -S -c \"print('{mark}')\"",
    "for i in 1 2 3; do echo {mark} $i; done",
    "cat <<'EOF'\n{mark} and $HOME\nEOF",
    "sleep 0.2; ls -la # {mark}",
    "NAME={mark} bash -c 'echo $NAME'",
    "printf '%s\\n' {mark} > /dev/null 2>&1 || true",
    "sed -n 1,3p /etc/passwd && echo {mark}",
    "(echo {mark}; exit 3)",
    ": {mark} " + "x" * 6000,
)
TOOLS = {"Bash": "command", "exec_command": "cmd", "shell_command": "command"}
_MARK = re.compile(r"mark-\d+-\d+-end")


class Commanding:
    """A model's mind: commands in so many answers, and then it is done."""

    def __init__(self, turns: int) -> None:
        self._turns = turns

    def __call__(self, request: ChatRequest) -> str:
        done = sum(message.get("role") == "assistant" for message in request.messages)
        names = [tool["function"]["name"] for tool in request.tools]
        name = next((name for name in names if name in TOOLS), None)
        if name is None or done >= self._turns:
            return "All of it is done now."
        texts = [
            FORMS[(done * AT_ONCE + place) % len(FORMS)].format(mark=f"mark-{done}-{place}-end")
            for place in range(AT_ONCE)
        ]
        extra = {"description": "Do it"} if name == "Bash" else {}
        return "I go on." + "".join(call_text(name, json.dumps({TOOLS[name]: t} | extra)) for t in texts)


class Minting(Identities):
    """Identities that remember which tool calls were given out, in order, by program."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, list[str]] = defaultdict(list)
        self._lock = Lock()

    def mint(self, program: str, call: str) -> str:
        tool_call = super().mint(program, call)
        with self._lock:
            self.given[program].append(tool_call)
        return tool_call


def drive(driver: Driver, runs: int, url: str, sensing: str, folder: Path) -> dict[str, str]:
    """Let so many agents run at the same time; what failed, in words, by run."""
    failed: dict[str, str] = {}

    def one(number: int) -> None:
        name = f"{sensing}-{number}"
        place = folder / name
        place.mkdir()
        prefix = (
            *(sys.executable, "-m", "agentsched", "wrap", "--daemon", url, "--program", name),
            *("--sensing", sensing, "--log", str(folder / f"{name}.log"), "--"),
        )
        try:
            driver(Run(name=name, url=f"{url}/program/{name}", folder=place, prefix=prefix))
        except Exception as error:  # of a client: it is counted, and the others go on
            failed[name] = f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(runs) as pool:
        list(pool.map(one, range(runs)))
    return failed


def read(logs: list[Path]) -> list[list[dict[str, Any]]]:
    """The commands of each agent."""
    return [[json.loads(line) for line in log.read_text("utf-8").splitlines()] for log in logs]


def judge(given: dict[str, list[str]], logs: list[list[dict[str, Any]]]) -> dict[str, int]:
    """How many commands are right, wrong and missed. The truth of a tool call follows from when it was given
    out: a run is one program, whose answers come in order."""
    truth = {
        tool_call: (program, f"mark-{index // AT_ONCE}-{index % AT_ONCE}-end")
        for program, calls in given.items()
        for index, tool_call in enumerate(calls)
    }
    counts = {"asked": len(truth), "right": 0, "wrong": 0, "own": 0}
    found: set[str] = set()
    for taken in logs:
        told = [each["tool_call"] for each in taken if each["tool_call"]]
        programs = [truth[tool_call][0] for tool_call in told if tool_call in truth]
        own = max(set(programs), key=programs.count) if programs else ""
        for each in taken:
            marks = set(_MARK.findall(" ".join(each["words"])))
            if each["tool_call"] is None:
                counts["own"] += not marks
                continue
            right = truth.get(each["tool_call"], ("", ""))
            good = right[0] == own and right[1] in marks and each["tool_call"] not in found
            counts["right" if good else "wrong"] += 1
            found.add(each["tool_call"])
    counts["missed"] = len(truth.keys() - found)
    return counts


@click.command()
@click.option(
    "--npm",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder node_modules/.bin with claude and codex.",
)
@click.option("--runs", default=4, show_default=True, help="Agents at the same time, of each client.")
@click.option("--turns", default=15, show_default=True, help=f"Answers with {AT_ONCE} commands each.")
@click.option("--quick", is_flag=True, help="Two agents with three answers: does it work?")
@click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), default=RESULT, show_default=True
)
def main(npm: Path, runs: int, turns: int, quick: bool, path: Path) -> None:
    """Measure how many commands of real agents are taken for the right tool calls."""
    if quick:
        runs, turns = 2, 3
    console, began_s = Console(width=120), time.monotonic()
    rows: list[dict[str, Any]] = []
    for client, driver in node_clients(npm.resolve()).items():
        for sensing in ("bpf", "polling"):
            known = Minting()
            with tempfile.TemporaryDirectory() as folder, served(Commanding(turns), known) as url:
                failed = drive(driver, runs, url, sensing, Path(folder))
                logs = read(sorted(Path(folder).glob("*.log")))
            counts = judge(known.given, logs)
            moved = sorted(1000 * each["moved_after_s"] for log in logs for each in log)
            rows.append(
                {
                    "client": client,
                    "sensing": sensing,
                    **counts,
                    "moved_after_p50_ms": round(percentile(moved, 50), 2),
                    "moved_after_p90_ms": round(percentile(moved, 90), 2),
                    "failed": failed,
                }
            )
            console.print(f"{client}, {sensing}: {counts}", style="dim")
            for name, why in failed.items():
                console.print(f"{name}: {why}", markup=False)
    show(rows, console)
    took_s = round(time.monotonic() - began_s)
    _found.keep(_found.headed("wrap", {"seconds": took_s, "rows": rows, "goals": {}}), path, console)


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The table, for people and for the docs."""
    table = Table("client", "seen by", "tool calls", "right", "wrong", "missed", "others", "moved after ms")
    for row in rows:
        share = f"{row['right']} ({100 * row['right'] / max(1, row['asked']):.1f} %)"
        others = (str(row[name]) for name in ("wrong", "missed", "own"))
        moved = f"{row['moved_after_p50_ms']:.1f} (P90 {row['moved_after_p90_ms']:.1f})"
        table.add_row(row["client"], row["sensing"], str(row["asked"]), share, *others, moved)
    console.print(table)


if __name__ == "__main__":
    main()
