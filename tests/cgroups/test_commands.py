"""Which programs a command runs, by its text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.cgroups import ToolSpec
from agentsched.cgroups.commands import MOST_PROGRAMS, assignments, pipes, programs


@pytest.mark.parametrize(
    ("command", "ran"),
    [
        ("pytest -q", [("pytest", "-q")]),
        ("cd /x && python3.11 -m pytest -q tests", [("pytest", "-q", "tests")]),
        ("A=1 B='x y' timeout -k 5 60s ./run.sh a", [("run.sh", "a")]),
        ("bash -lc 'cd x; make -j2'", [("make", "-j2")]),
        ("make 2>&1 | tee log.txt", [("make",), ("tee", "log.txt")]),
        ("make >log 2>&1; ls", [("make",), ("ls",)]),
        ("echo 'a && b' \"c;d\"", [("echo", "a && b", "c;d")]),
        ("npx -y yarn@1 install", [("yarn", "install")]),
        ("uv run pytest -x || true", [("pytest", "-x"), ("true",)]),
        ("poetry run python -m unittest", [("unittest",)]),
        ("python - <<'EOF'\nimport os; os.system('make')\nEOF", [("python", "-")]),
        ("cat > a <<E\nmake; ls\nE\ncd x && pytest a", [("cat",), ("pytest", "a")]),
        ("cat <<-E | sort\nmake\n\tE\npytest", [("cat",), ("sort",), ("pytest",)]),
        ("cd x", []),
        ("", []),
    ],
)
def test_programs_of_a_command(command: str, ran: list[tuple[str, ...]]) -> None:
    assert programs((), command) == ran


def test_programs_of_arguments() -> None:
    assert programs(("bash", "-c", "pytest && make"), "") == [("pytest",), ("make",)]
    assert programs(("/usr/bin/env", "X=1", "ninja"), "") == [("ninja",)]
    assert programs(("echo", "a && b"), "") == [("echo", "a && b")]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("cd repo && python -m pytest", "pytest"),
        ("echo $GREETING; pwd", "echo"),
        ("cd repo", "cd"),
        ("X=1 ./a.sh", "a.sh"),
        ("sh -c 'exit 3'", "sh"),
        ("((", "(("),
    ],
)
def test_the_class_of_a_command(command: str, name: str) -> None:
    assert ToolSpec(command=command).command_class == name


def test_assignments_before_a_program() -> None:
    assert assignments((), "A=1 B='x y' cmd C=3") == {"A": "1", "B": "x y"}
    assert assignments((), "cd x && A=1 cmd; A=2 cmd") == {"A": "1"}
    assert assignments(("bash", "-lc", "A=1 cmd"), "") == {"A": "1"}
    assert assignments((), "cmd A=1") == {}


@given(st.text(max_size=300), st.lists(st.text(max_size=20), max_size=5))
def test_any_text_is_read(command: str, argv: list[str]) -> None:
    for found in (programs((), command), programs(argv, "")):
        assert len(found) <= MOST_PROGRAMS
        assert all(words and words[0] for words in found)
    assignments(argv, command)
    assignments(argv, "")
    assert all(command[at] == "|" for at, _, _ in pipes(command))
