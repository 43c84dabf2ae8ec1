"""Looks at the machine: which sandbox folders and processes of one runtime process are there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agentsched.cgroups import leftovers, names


def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Poll until it holds; False when the time is over."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def instances_of(pid: int) -> list[leftovers.Instance]:
    """What is on the machine of the runtime with this pid. Other runtimes may run beside the tests."""
    return [instance for instance in leftovers.find() if instance.name.startswith(f"{pid}-")]


def own_leaves() -> list[Path]:
    """Leaf folders of this process, in all hierarchies."""
    return [
        leaf
        for instance in instances_of(os.getpid())
        for folder in instance.folders
        for leaf in Path(folder).glob("*/*")
        if leaf.is_dir()
    ]


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    return names._start_time(pid) is not None


def start_runtime(code: str, **environment: str) -> tuple[subprocess.Popen[str], list[str]]:
    """Start a runtime process of its own; returns it and the words it printed once it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()
