"""``agentsched replay``: what it says of logs that agree, that differ, and that were cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agentsched import __version__
from agentsched.cli.commands import cli
from agentsched.core.decisions import Admit
from agentsched.core.log import Entry, Header, encode
from agentsched.core.snapshot import freeze
from tests.core.harness import Harness


def lines_of(version: str = __version__) -> list[bytes]:
    """A log that begins in the middle of a run."""
    harness = Harness("agentsched")
    for _ in range(3):
        harness.arrive(harness.open())
    header = Header(
        agentsched=version, policy="agentsched", epoch=1, started_unix_s=0.0, snapshot=freeze(harness.core)
    )
    harness.entries.clear()
    harness.arrive(harness.open())
    harness.drain()
    return [encode(header) + b"\n", *(encode(entry) + b"\n" for entry in harness.entries)]


def replayed(folder: Path, *logs: list[bytes]) -> Result:
    paths = [folder / f"events-{number}.jsonl" for number in range(len(logs))]
    for path, lines in zip(paths, logs, strict=True):
        path.write_bytes(b"".join(lines))
    return CliRunner().invoke(cli, ["replay", *map(str, paths)], standalone_mode=False)


def test_logs_that_agree(tmp_path: Path) -> None:
    result = replayed(tmp_path, lines_of(), lines_of())
    assert result.return_value == 0
    first, second = result.output.splitlines()
    assert first.startswith(f"{tmp_path}/events-0.jsonl: ")
    assert first.endswith("decisions agree")
    counted, of = first.split(", ")[1].split(" of ")
    assert int(counted) == int(of.split()[0]) > 3
    assert second.startswith(f"{tmp_path}/events-1.jsonl: ")


def test_a_difference_is_shown_with_its_event_and_the_status_is_1(tmp_path: Path) -> None:
    lines = lines_of()
    at = next(number for number, line in enumerate(lines) if b'"decision":"Admit"' in line)
    lines[at] = lines[at].replace(b'"engine":"e0"', b'"engine":"e7"')
    result = replayed(tmp_path, lines_of(), lines)
    assert result.return_value == 1
    assert "first difference at line " in result.output
    shown = result.output[result.output.index("first difference") :].splitlines()
    assert '"event":"' in shown[1]
    assert shown[2].startswith("    logged    ")
    assert '"engine":"e7"' in shown[2]
    assert shown[3].startswith("    replayed  ")
    assert '"engine":"e0"' in shown[3]


def test_a_decision_too_many_or_too_few_is_a_difference(tmp_path: Path) -> None:
    lines = lines_of()
    at = next(number for number, line in enumerate(lines) if b'"decision":"Admit"' in line)
    assert replayed(tmp_path, lines[:at] + lines[at + 1 :]).return_value == 1
    more = Entry(now=1e6, decision=Admit(program="p", engine="e", cause=1, epoch=1, seq=10**6))
    result = replayed(tmp_path, [*lines, encode(more) + b"\n"])
    assert result.return_value == 1
    assert "replayed  no further decision" in result.output


@pytest.mark.parametrize("kept", [1, 20])
def test_a_log_that_was_cut_off_in_its_last_line_agrees_and_that_is_said(tmp_path: Path, kept: int) -> None:
    lines = lines_of()
    lines[-1] = lines[-1][:kept]
    result = replayed(tmp_path, lines)
    assert result.return_value == 0
    assert "note: it was cut off" in result.output


def test_an_event_without_its_last_decisions_agrees_at_the_end_of_a_log_only(tmp_path: Path) -> None:
    lines = lines_of()
    at = next(number for number, line in enumerate(lines) if b'"decision":"Admit"' in line)
    result = replayed(tmp_path, lines[:at])
    assert result.return_value == 0
    assert "decisions on its last event are not in it" in result.output


def test_another_version_is_named(tmp_path: Path) -> None:
    assert "written by agentsched 0.0.1" in replayed(tmp_path, lines_of("0.0.1")).output


def test_what_is_no_log_is_one_clear_line(tmp_path: Path) -> None:
    for lines, words in (
        ([b"{}\n"], "line 1 is not a log header"),
        ([], "the log is empty"),
        ([lines_of()[0].replace(b"core.core:Core", b"core.core:Kern")], "the snapshot is of another version"),
        ([lines_of()[0].replace(b'"format":2', b'"format":9')], "format 9"),
    ):
        result = replayed(tmp_path, lines)
        assert result.exit_code == 1
        assert words in str(result.exception.message)  # type: ignore[union-attr]
