"""Scratch folders go with their run, or with the next one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentsched.cli.cleanup import cleanup
from agentsched.workloads import scratch

KILLED = """
import os, signal
from agentsched.workloads import scratch
with scratch.folder() as place:
    (place / "tree").mkdir()
    print(place, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    place = Path(done.stdout.strip())
    assert (place.parent, (place / "tree").exists()) == (tmp_path, True)
    return place


def test_a_folder_goes_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch.folder() as place:
        (place / "tree").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(killed: Path) -> None:
    other = killed.parent / "agentsched-run-of-somebody"
    other.mkdir()
    with scratch.folder() as live:
        assert not killed.exists()
        with scratch.folder() as second:
            assert live.exists()
            assert second.exists()
    assert list(killed.parent.iterdir()) == [other]


def test_cleanup_removes_it_too(killed: Path) -> None:
    assert f"would remove: {killed}" in CliRunner().invoke(cleanup, ["--dry-run"]).output
    assert killed.exists()
    assert f"removed: {killed}" in CliRunner().invoke(cleanup).output
    assert not killed.exists()
