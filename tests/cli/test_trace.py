"""``agentsched trace``: from an event log to a trace file."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from agentsched.cli.trace import trace
from agentsched.core import events as ev
from agentsched.core.log import Entry, Header, encode
from agentsched.workloads.sessions import read_sessions


def event_log(path: Path) -> Path:
    events: list[ev.AnyEvent] = [
        ev.CallArrived(call="c", program="p", prompt_tokens=100, max_output_tokens=9),
        ev.CallFinished(call="c", prompt_tokens=100, cached_tokens=0, output_tokens=9),
    ]
    header = Header(agentsched="test", policy="fcfs-lru", epoch=1, started_unix_s=0.0)
    lines = [encode(header), *(encode(Entry(now=now, event=event)) for now, event in enumerate(events))]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_a_log_becomes_a_trace(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl.gz"
    log = event_log(tmp_path / "events.jsonl")
    result = CliRunner().invoke(trace, [str(log), "--out", str(out), "--source", "mine"])
    assert result.exit_code == 0, result.output
    assert "1 programs, 1 calls" in result.output
    (session,) = read_sessions(out)
    assert (session.session, session.source, session.turns[0].output_tokens) == ("p", "mine", 9)


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("hello\n")
    result = CliRunner().invoke(trace, [str(tmp_path / "events.jsonl"), "--out", str(tmp_path / "t.jsonl")])
    assert result.exit_code == 1
    assert "line 1 is not a log header" in result.output
    assert not (tmp_path / "t.jsonl").exists()
