"""What a benchmark leaves behind: a file that says what was found, by which command, on which host."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from agentsched import __version__
from agentsched.workloads.summary import describe_host

Goals = Mapping[str, Mapping[str, Any]]
"""By name: ``value``, ``want``, and whether it is ``met``."""


def command(bench: str) -> str:
    """What was asked for."""
    return shlex.join(["scripts/bench", bench, *sys.argv[1:]])


def headed(bench: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, after the version, the command and the host."""
    return {"version": __version__, "command": command(bench), "host": describe_host(), **found}


def keep(found: Mapping[str, Any], path: Path, console: Console) -> None:
    """Write it as JSON, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {path}", soft_wrap=True)


def tell(goals: Goals, console: Console) -> None:
    """One line a goal."""
    for name, goal in goals.items():
        met = "met" if goal["met"] else "NOT MET"
        console.print(f"{met}: {name}: {goal['value']} (wanted {goal['want']})", soft_wrap=True, markup=False)
