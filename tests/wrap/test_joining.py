"""Which tool call a command is: by what real clients make of a model's words."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.cgroups.wrapping.joining import Asked, Joins, Ran, command_of


def claude(command: str) -> tuple[str, ...]:
    """As Claude Code 2.1 runs it."""
    script = (
        "source /home/me/.claude/shell-snapshots/snapshot-bash-1.sh 2>/dev/null || true && shopt -u extglob "
        f"2>/dev/null || true && eval {shlex.quote(command)} < /dev/null && pwd -P >| /tmp/claude-1-cwd"
    )
    return ("/bin/bash", "-c", "-l", script)


def codex(command: str) -> tuple[str, ...]:
    return ("/bin/bash", "-lc", command)


def bare(command: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", command)


CLIENTS = (claude, codex, bare)


def asked(name: str, arguments: object, at_s: float = 0.0, result_s: float | None = None) -> Asked:
    return Asked(name, "bash", json.dumps(arguments), at_s, result_s)


def found(words: tuple[str, ...], *calls: Asked, began_s: float = 1.0, whole: bool = True) -> str | None:
    match = Joins().find([Ran(words, whole)], began_s, calls)
    return match.asked.tool_call if match else None


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "command",
    [
        "ls",
        "cd /repo && python -m pytest -q 2>&1 | tail -5",
        """echo 'it'\\''s' "quoted \\"words\\"" | wc -c""",
        "cat <<'EOF'\nan 'odd text\nEOF",
        "for i in 1 2; do echo $i; done",
        "python3 -c \"print('x')\"",
        "A=1 make -j2;",
        "true  &&\n   false",
    ],
)
def test_a_command_is_found_behind_what_its_client_wraps_around_it(client: object, command: str) -> None:
    assert callable(client)
    calls = [
        asked("other", {"command": "echo other"}),
        asked("right", {"command": command}),
        asked("longer", {"command": command + " && echo more"}),
    ]
    assert found(client(command), *calls) == "right"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40))
def test_any_text_is_found(command: str) -> None:
    if not command.strip().strip(";").strip():
        return
    for client in CLIENTS:
        assert found(client(command), asked("right", {"command": command})) == "right"


def test_what_leads_to_a_command_may_differ() -> None:
    assert found(("bash", "-lc", "cd /work && pytest -q"), asked("t", {"command": "pytest -q"})) == "t"
    assert found(("bash", "-lc", "pytest -q"), asked("t", {"command": "cd /work && pytest -q"})) == "t"
    assert found(("bash", "-c", "exec bash -lc 'pytest -q'"), asked("t", {"cmd": "pytest -q"})) == "t"
    assert found(("/usr/bin/git", "status"), asked("t", {"command": "git status"})) == "t"


def test_a_part_of_a_word_is_no_match() -> None:
    assert found(("git", "ls-files"), asked("t", {"command": "ls"})) is None
    assert found(("bash", "-c", "make tests-all"), asked("t", {"command": "make tests"})) is None


def test_a_short_text_within_a_long_one_is_no_match() -> None:
    assert found(("bash", "-c", "for f in $(ls); do cp $f .; done"), asked("t", {"command": "ls"})) is None


def test_what_a_command_becomes_tells_better_than_what_stands_within() -> None:
    """Codex hands its command through a long script, in which another tool call's text may stand, too."""
    long, short = "make tests-unit && make tests-all", "make tests-unit"
    calls = [asked("short", {"command": short}), asked("long", {"command": long})]
    first = Ran(("codex-setup", "bash", "-c", f"export A=1; exec bash -c '{long}'"), True)
    assert Joins().find([first], 1.0, calls, sure=True) is None
    match = Joins().find([first, Ran(("bash", "-c", long), True)], 1.0, calls, sure=True)
    assert match is not None
    assert match.asked.tool_call == "long"
    match = Joins().find([first], 1.0, calls)
    assert match is not None
    assert match.asked.tool_call == "long"


def test_a_command_that_was_cut_is_known_by_its_beginning() -> None:
    command = "echo " + "x" * 9000
    call = asked("t", {"command": command})
    assert found(("bash", "-c", command[:4000]), call, whole=False) == "t"
    assert found(("bash", "-c", command[:4000]), call, whole=True) is None
    script = claude(command)[-1]
    assert found(("bash", "-c", "-l", script[:4000]), call, whole=False) == "t"
    assert (
        found(("bash", "-c", script[:4000]), asked("u", {"command": "echo " + "y" * 99}), whole=False) is None
    )


def test_of_equal_ones_each_is_taken_once_in_order_of_asking() -> None:
    joins = Joins()
    calls = [asked("b", {"command": "ls"}, 0.5), asked("a", {"command": "ls"}, 0.2)]
    taken = [joins.find([Ran(("sh", "-c", "ls"), True)], 1.0, calls) for _ in range(3)]
    assert [match and match.asked.tool_call for match in taken] == ["a", "b", None]


def test_what_was_asked_for_later_or_had_its_result_before_is_another_one() -> None:
    ls = {"command": "ls"}
    assert found(("sh", "-c", "ls"), asked("later", ls, at_s=9.0), began_s=1.0) is None
    assert found(("sh", "-c", "ls"), asked("before", ls, result_s=0.5), began_s=1.0) is None
    assert found(("sh", "-c", "ls"), asked("quick", ls, result_s=1.01), began_s=1.0) == "quick"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ('{"command": "ls", "description": "x"}', "ls"),
        ('{"cmd": "ls", "yield_time_ms": 5}', "ls"),
        ('{"command": ["bash", "-lc", "ls -l"]}', "ls -l"),
        ('{"command": ["git", "log", "a b"]}', "git log 'a b'"),
        ('{"path": "x"}', None),
        ('{"command": 5}', None),
        ("[1]", None),
        ("{", None),
    ],
)
def test_the_command_is_read_from_the_arguments_of_known_clients(arguments: str, command: str | None) -> None:
    assert command_of(arguments) == command
