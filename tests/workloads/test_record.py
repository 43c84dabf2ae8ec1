"""An event log becomes a trace, and the trace the program that it was recorded from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core import events as ev
from agentsched.core.log import Entry, Header, LogError, encode
from agentsched.workloads.record import sessions_from_log
from agentsched.workloads.scripts import Script, Turn
from agentsched.workloads.traces import load, read_sessions, scripts_from, write_sessions

HEADER = Header(agentsched="test", policy="fcfs-lru", epoch=1, started_unix_s=0.0)


def log(entries: Iterable[tuple[float, ev.AnyEvent]]) -> list[bytes]:
    timed = sorted(entries, key=lambda pair: pair[0])
    return [encode(HEADER) + b"\n", *(encode(Entry(now=now, event=event)) + b"\n" for now, event in timed)]


def call(
    name: str, program: str, at: float, tokens: tuple[int, int], asks: str = ""
) -> list[tuple[float, ev.AnyEvent]]:
    """A call of two seconds; ``asks`` is the function of the one tool call that it asks for."""
    prompt, output = tokens
    refs = (ev.ToolCallRef(tool_call=f"{name}-tool", tool=asks),) if asks else ()
    finished = ev.CallFinished(
        call=name, prompt_tokens=prompt, cached_tokens=prompt // 2, output_tokens=output, tool_calls=refs
    )
    return [
        (at, ev.CallArrived(call=name, program=program, prompt_tokens=1, max_output_tokens=99)),
        (at + 0.5, ev.CallStarted(call=name, cached_tokens=0)),
        (at + 2.0, finished),
    ]


def played(script: Script, start_s: float) -> list[tuple[float, ev.AnyEvent]]:
    """What a daemon logs of a program whose every call takes two seconds and every tool its gap."""
    program, entries = script.program, list[tuple[float, ev.AnyEvent]]()
    now = start_s + script.arrives_s
    entries.append((now, ev.ProgramOpened(program=program, tenant=script.tenant)))
    for index, (turn, prompt) in enumerate(zip(script.turns, script.contexts(), strict=True)):
        name = f"{program}-{index}"
        entries += call(name, program, now, (prompt, turn.output_tokens), turn.tool)
        now += 2.0
        if turn.tool:
            names = {"tool_call": f"{name}-tool", "program": program}
            began = ev.ToolStarted(tool=turn.tool, command=turn.command, **names)  # type: ignore[arg-type]
            entries.append((now, began))
            used = {"cpu_s": turn.cpu_s, "peak_memory_bytes": turn.memory_bytes}
            ended = ev.ToolFinished(**names, exit_status=0, wall_s=turn.gap_s, **used)  # type: ignore[arg-type]
            entries.append((now + turn.gap_s, ended))
        now += turn.gap_s
    entries.append((now, ev.ProgramClosed(program=program)))
    return entries


seconds = st.integers(0, 100_000).map(lambda ms: ms / 1000)


@st.composite
def programs(draw: st.DrawFn) -> list[Script]:
    scripts = []
    for number in range(draw(st.integers(1, 3))):
        turns = []
        count = draw(st.integers(3, 6))
        for index in range(count):
            last = index == count - 1
            used = draw(st.booleans())
            turns.append(
                Turn(
                    new_tokens=draw(st.integers(32, 5_000)),
                    output_tokens=draw(st.integers(1, 500)),
                    gap_s=0.0 if last else draw(seconds),
                    tool="bash" if used else "",
                    command="pytest" if used else "",
                    cpu_s=draw(seconds) if used else 0.0,
                    memory_bytes=draw(st.integers(0, 5_000)) * 1_000_000 if used else 0,
                )
            )
        tenant = draw(st.sampled_from(["default", "acme"]))
        arrives_s = 0.0 if number == 0 else draw(seconds)
        scripts.append(Script(f"p{number}", arrives_s, tuple(turns), tenant=tenant, source="mine"))
    return sorted(scripts, key=lambda script: script.arrives_s)


@given(programs())
def test_a_recorded_program_is_the_program_that_ran(scripts: list[Script]) -> None:
    recorded = sessions_from_log(log(entry for each in scripts for entry in played(each, 1000.0)), "mine")
    again = {script.program: script for script in scripts_from(recorded)}
    assert set(again) == {script.program for script in scripts}
    for script in scripts:
        made = again[script.program]
        assert made.arrives_s == pytest.approx(script.arrives_s, abs=0.002)
        assert (made.tenant, made.source) == (script.tenant, script.source)
        assert len(made.turns) == len(script.turns)
        for one, two in zip(made.turns, script.turns, strict=True):
            assert (one.new_tokens, one.output_tokens) == (two.new_tokens, two.output_tokens)
            assert (one.tool, one.command, one.cpu_s) == (two.tool, two.command, two.cpu_s)
            assert one.memory_bytes == pytest.approx(two.memory_bytes, abs=1)
            assert one.gap_s == pytest.approx(two.gap_s, abs=0.002)


def test_what_a_session_holds() -> None:
    entries = [
        *call("c1", "b", 10.0, (400, 20), asks="bash"),
        *call("c2", "b", 15.0, (500, 10)),
        *call("c3", "a", 9.0, (300, 5)),
        (20.0, ev.CallArrived(call="c4", program="b", prompt_tokens=600, max_output_tokens=9)),
        (21.0, ev.CallAborted(call="c4", reason="client gone")),
        *call("c5", "b", 25.0, (650, 30)),
        (30.0, ev.CallArrived(call="c6", program="never", prompt_tokens=600, max_output_tokens=9)),
    ]
    first, second = sessions_from_log(log(entries))
    assert [session.session for session in (first, second)] == ["a", "b"]
    assert [session.t0 for session in (first, second)] == [0.0, 1.0]
    assert [turn.t for turn in second.turns] == [0.0, 5.0, 15.0]
    assert [turn.gap_after_s for turn in second.turns] == [3.0, 8.0, None]
    assert [turn.gap_kind for turn in second.turns] == ["tool", "unknown", "end"]
    assert [turn.llm_s for turn in second.turns] == [2.0, 2.0, 2.0]
    assert [turn.cached_prefix_tokens for turn in second.turns] == [200, 250, 325]
    (tool,) = second.turns[0].tools or []
    assert (tool.name, tool.duration_s, tool.peak_rss_mb) == ("bash", None, None)
    assert second.turns[1].tools == []


def test_recordings_pass_through_files(tmp_path: Path) -> None:
    turns = (Turn(500, 20, 1.5, tool="bash", command="ls"), Turn(100, 20, 0.25), Turn(64, 20, 0.0))
    recorded = sessions_from_log(log(played(Script("p", 0.0, turns), 50.0)))
    write_sessions(tmp_path / "run.jsonl.gz", recorded)
    assert list(read_sessions(tmp_path / "run.jsonl.gz")) == recorded
    (script,) = load(str(tmp_path / "run.jsonl.gz"))
    assert script.turns == turns
    assert script.source == "agentsched"


def test_logs_without_calls_and_damaged_logs() -> None:
    assert sessions_from_log([encode(HEADER) + b"\n"]) == []
    with pytest.raises(LogError, match="line 2"):
        sessions_from_log([encode(HEADER) + b"\n", b"{}x\n", b"{}\n"])
