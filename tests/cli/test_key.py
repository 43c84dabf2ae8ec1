"""``agentsched key``: keys for the tenants' file; and the daemon that reads it."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.cli.test_serve import DEADLINE_S, run, serving


def new_key(*options: str) -> tuple[str, str]:
    """The key, and the lines for the file."""
    argv = [sys.executable, "-m", "agentsched", "key", "new", *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    return done.stderr.split("key: ")[1].split()[0], done.stdout


def status(url: str, key: str) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_made_keys_open_a_daemon_that_others_reach(tmp_path: Path) -> None:
    (admin, first), (key, second) = new_key("--admin"), new_key("acme")
    assert admin not in first
    assert key not in second
    path = tmp_path / "tenants.toml"
    path.write_text(first + second)
    with serving(tmp_path, "--tenants", str(path), "--host", "0.0.0.0") as (_, url):
        programs, tenants = f"{url}/agentsched/v1/programs", f"{url}/agentsched/admin/tenants"
        assert [status(programs, each) for each in (key, admin, "")] == [200, 403, 401]
        assert [status(tenants, each) for each in (key, admin, "")] == [403, 200, 401]


@pytest.mark.parametrize("options", [(), ("acme", "--admin"), ("Acme",), ("a/b",)])
def test_whose_key_it_is_must_be_said(options: tuple[str, ...]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        new_key(*options)
    assert error.value.returncode == 2


def test_without_keys_a_daemon_that_others_reach_does_not_start() -> None:
    done = run("--engine", "simulated", "--port", "0", "--host", "0.0.0.0")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "agentsched key new" in done.stderr


def test_a_wrong_tenants_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text('[[tenants]]\nname = "a"\nwieght = 1\n')
    done = run("--engine", "simulated", "--port", "0", "--tenants", str(path))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "wieght" in done.stderr
