"""``agentsched report``: one HTML file of what a log recorded."""

from __future__ import annotations

import base64
import gzip
import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from agentsched.cli.report import report
from agentsched.cli.simulate import simulate
from agentsched.core import events as ev
from agentsched.core.log import Entry, Header, encode
from agentsched.daemon.dashboard.rows import View


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crowd on an engine where a few fit."""
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    options = ["gen:saga-swe", "--policy", "agentsched", "--kv-tokens", "120000", "--concurrency", "12"]
    done = CliRunner().invoke(simulate, [*options, "--programs", "15", "--log", str(path)])
    assert done.exit_code == 0, done.output
    return path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(report, [str(arg) for arg in args])


def view_in(page: Path) -> View:
    held = re.search(r'id="recorded">([^<]+)<', page.read_text("utf-8"))
    assert held is not None
    return msgspec.json.decode(gzip.decompress(base64.b64decode(held.group(1))), type=View)


def test_all_of_it_with_what_was_expected(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = run(log, "--out", out)
    assert done.exit_code == 0, done.output
    assert "15 programs" in done.output
    view = view_in(out)
    assert len(view.programs) == 15
    assert all(row.ended_s is not None for row in view.programs)
    assert {"admit", "pause", "wait", "evict"} <= {item.kind for item in view.items}
    why = [item.text for item in view.items if item.kind == "wait"]
    assert any("overflow" in text or "may be filled" in text for text in why)
    assert any(gauge.peak_tokens for gauge in view.engines[0].gauges)
    assert view.notes == []


def test_a_part_of_it_knows_who_was_there_before(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.html"
    assert run(log, "--from", "60", "--to", "100", "--out", out).exit_code == 0
    view = view_in(out)
    assert 60 <= view.since_s <= view.at_s <= 100
    before = [row for row in view.programs if row.opened_s < 60]
    assert before
    assert all(row.tenant and row.spans for row in before)


def test_it_needs_nothing_from_elsewhere(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    run(log, "--out", out)
    page = out.read_text("utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", page)


def test_a_log_that_cannot_be_replayed_is_shown_all_the_same(tmp_path: Path) -> None:
    """It begins in the middle: a program calls that was never opened."""
    log = tmp_path / "odd.jsonl"
    entries = [
        Entry(now=5.0, event=ev.CallArrived(call="c", program="odd", prompt_tokens=9, max_output_tokens=9)),
        Entry(now=6.0, event=ev.CallStarted(call="c", cached_tokens=0)),
        Entry(now=7.0, event=ev.CallFinished(call="c", prompt_tokens=9, cached_tokens=0, output_tokens=1)),
    ]
    header = Header(agentsched="0", policy="agentsched", epoch=1, started_unix_s=0.0)
    log.write_bytes(b"\n".join([encode(header), *map(encode, entries), b""]))
    done = run(log, "--out", tmp_path / "odd.html")
    assert done.exit_code == 0, done.output
    assert "cannot replay the log" in done.output
    (row,) = view_in(tmp_path / "odd.html").programs
    assert [span.doing for span in row.spans] == ["gateway", "prefill", "agent"]


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "it has no header"), (b"no log\n", "line 1 is not a log header")]
)
def test_what_is_no_log_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "none.jsonl"
    path.write_bytes(content)
    done = run(path)
    assert done.exit_code == 1
    assert str(path) in done.output
    assert said in done.output


def test_an_empty_period_is_said_to_be_one(log: Path, tmp_path: Path) -> None:
    assert "is not after" in run(log, "--from", "9", "--to", "3").output
    assert "nothing happened" in run(log, "--from", "1e6", "--out", tmp_path / "x.html").output


def test_files_of_several_runs_are_not_mixed(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    header = Header(agentsched="0", policy="agentsched", epoch=7, started_unix_s=0.0)
    other.write_bytes(encode(header) + b"\n")
    assert "several runs" in run(log, other, "--out", tmp_path / "x.html").output
