"""``agentsched cleanup`` removes what dead runtimes left, and only that."""

from __future__ import annotations

import os
import signal

import pytest
from click.testing import CliRunner

from agentsched.cli.cleanup import cleanup
from tests.cgroups.looking import instances_of, is_running, start_runtime

pytestmark = pytest.mark.cgroups

RUNTIME = """
import threading, time
from agentsched.cgroups import Sandbox, ToolSpec
sandbox = Sandbox.open("victim")
def started(leaf, pid):
    leaf.freeze(600)
    print(pid, sandbox.watchdog_pid, flush=True)
sandbox.run(ToolSpec(argv=["sleep", "300"]), on_start=started)
"""


@pytest.mark.parametrize("backend", ["auto", "none"])
def test_a_live_runtime_is_left_alone_and_a_dead_one_removed(backend: str) -> None:
    process, words = start_runtime(RUNTIME, AGENTSCHED_BACKEND=backend)
    tool, guard = map(int, words)
    try:
        (instance,) = instances_of(process.pid)
        assert f"left alone: {instance.name}" in CliRunner().invoke(cleanup).output
        assert is_running(tool)

        os.kill(guard, signal.SIGKILL)
        process.kill()
        process.wait(10)
        assert f"would remove: {instance.name}" in CliRunner().invoke(cleanup, ["--dry-run"]).output
        assert is_running(tool)

        done = CliRunner().invoke(cleanup)
        assert done.exit_code == 0
        assert f"removed: {instance.name}" in done.output
        assert instances_of(process.pid) == []
        assert not is_running(tool)
        assert instance.name not in CliRunner().invoke(cleanup).output
    finally:
        process.kill()
        process.communicate()
