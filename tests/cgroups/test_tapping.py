"""Progress of commands that hide their output behind a filter; what they print stays as it was."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from agentsched.cgroups import Progress, Sandbox, ToolSpec
from agentsched.cgroups.progress.registry import is_known
from agentsched.cgroups.tapping import tapped

TEE = "| tee /dev/fd/9 2>/dev/null "


@pytest.mark.parametrize(
    ("script", "changed"),
    [
        ("pytest -q 2>&1 | tail -8", f"pytest -q 2>&1 {TEE}| tail -8"),
        ("cd x && python -m pytest|head", f"cd x && python -m pytest{TEE}|head"),
        (
            "grep -rn x . | head; pytest 2>&1 | grep -v y | tail",
            f"grep -rn x . | head; pytest 2>&1 {TEE}| grep -v y | tail",
        ),
        ("pytest a | tail; pytest b | tail", f"pytest a | tail; pytest b {TEE}| tail"),
        ("(cd x; make -s | cat; ninja | tail -1)", f"(cd x; make -s | cat; ninja {TEE}| tail -1)"),
        ("pytest -k 'a | tail'", None),
        ("pytest || tail x", None),
        ("ls | tail", None),
        ("pytest | python fold.py", None),
        ("pytest |& tail", None),
        ("set -o pipefail; pytest | tail", None),
        ("pytest | tail; echo ${PIPESTATUS[0]}", None),
        ("cat <<'E' >a\nmake | tail\nE\npytest | tail", f"cat <<'E' >a\nmake | tail\nE\npytest {TEE}| tail"),
        ("cat >a <<E\npytest | tail\nE", None),
        ("cat >a <<E\npytest | tail\n", None),
    ],
)
def test_where_a_tap_is_put(script: str, changed: str | None) -> None:
    made = tapped(["sh", "-c", script, "sh"], 9, is_known)
    assert made == (None if changed is None else ["sh", "-c", changed, "sh"])
    assert tapped(["pytest", "|", "tail"], 9, is_known) is None


SUITE = "import time, pytest\n@pytest.mark.parametrize('n', range(15))\ndef test_it(n): time.sleep(0.1)\n"
PYTEST = f"{sys.executable} -m pytest -p no:cacheprovider"


@pytest.mark.parametrize("backend", ["none", pytest.param("auto", marks=pytest.mark.cgroups)])
def test_a_pytest_behind_tail_tells_and_prints_the_same(backend: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = f"{PYTEST} 2>&1 | tail -2; echo status $?"
    seen: list[Progress] = []
    with Sandbox.open("tapping", backend=backend) as sandbox:
        result = sandbox.run(
            ToolSpec(command=command, cwd=str(tmp_path), env=env, tap=True), on_progress=seen.append
        )
    shares = [progress.done_fraction for progress in seen if progress.done_fraction is not None]
    assert len(shares) >= 3
    assert shares == sorted(shares)
    assert shares[0] < 0.7
    blank, summary, status = result.text.splitlines()
    assert (blank, status) == ("", "status 0")
    assert "15 passed" in summary


def unheard(progress: Progress) -> None:
    """Somebody listens, so that there is a tap."""


def test_a_filter_that_ends_early_ends_the_command(plain: Sandbox) -> None:
    fake = ToolSpec(command="pytest() { yes; }; pytest 2>&1 | head -n 1", timeout_s=20, tap=True)
    assert plain.run(fake, on_progress=unheard).text == "y\n"


def test_there_is_a_tap_only_for_who_listens_and_wants_it(plain: Sandbox) -> None:
    command = "pytest() { ls -l /proc/self/fd; }; pytest | cat"
    tap = plain.run(ToolSpec(command=command, tap=True), on_progress=unheard).text.count("\n")
    silent = plain.run(ToolSpec(command=command, tap=True)).text.count("\n")
    unwanted = plain.run(ToolSpec(command=command), on_progress=unheard).text.count("\n")
    assert tap > silent == unwanted
