"""Timelines: every moment of a program is in exactly one segment, and KV is where reports say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentsched.core import events as ev
from agentsched.core.decisions import Admit, Pause
from agentsched.core.log import Entry
from agentsched.workloads.timeline import KINDS, Timeline, read_timeline

MakeLog = Callable[..., list[Entry]]


def entry(now: float, value: ev.AnyEvent | Admit | Pause) -> Entry:
    if isinstance(value, Admit | Pause):
        return Entry(now=now, decision=value)
    return Entry(now=now, event=value)


def held(program: str, tokens: int) -> tuple[ev.Held, ...]:
    return (ev.Held(program=program, device_tokens=tokens, host_tokens=7),)


def arrived(call: str) -> ev.CallArrived:
    return ev.CallArrived(call=call, program="p", prompt_tokens=100, max_output_tokens=9)


def finished(call: str) -> ev.CallFinished:
    return ev.CallFinished(call=call, prompt_tokens=100, cached_tokens=0, output_tokens=20)


def admit() -> Admit:
    return Admit(cause=0, epoch=0, seq=0, program="p", engine="e")


LOG: list[tuple[float, ev.AnyEvent | Admit | Pause]] = [
    (9.0, ev.EngineAttached(engine="e", capacity_tokens=1000, block_tokens=16)),
    (10.0, arrived("c1")),
    (12.0, admit()),
    (13.0, ev.CallStarted(call="c1", cached_tokens=0)),
    (15.0, ev.FirstToken(call="c1")),
    (16.0, finished("c1")),
    (
        16.0,
        ev.StepReport(engine="e", free_tokens=800, evictable_tokens=0, held=held("p", 120), snapshot=True),
    ),
    (17.0, ev.ToolStarted(tool_call="t", program="p", tool="bash")),
    (18.0, Pause(cause=0, epoch=0, seq=1, program="p")),
    (
        20.0,
        ev.ToolFinished(
            tool_call="t", program="p", exit_status=0, wall_s=3.0, cpu_s=1.0, peak_memory_bytes=1
        ),
    ),
    (20.5, ev.StepReport(engine="e", free_tokens=900, evictable_tokens=0, snapshot=True)),
    (21.0, arrived("c2")),
    (22.0, admit()),
    (22.0, ev.CallStarted(call="c2", cached_tokens=0)),
    (23.0, ev.FirstToken(call="c2")),
    (24.0, finished("c2")),
    (25.0, ev.EngineLost(engine="e")),
]


def timeline() -> Timeline:
    return read_timeline([entry(now, value) for now, value in LOG])


def test_segments_by_hand() -> None:
    (row,) = timeline().rows
    assert [(s.kind, s.start_s, s.end_s) for s in row.segments] == [
        ("gateway", 0, 2),
        ("queue", 2, 3),
        ("prefill", 3, 5),
        ("decode", 5, 6),
        ("agent", 6, 7),
        ("tool", 7, 10),
        ("agent", 10, 11),
        ("gateway", 11, 12),
        ("prefill", 12, 13),
        ("decode", 13, 14),
    ]
    assert row.seconds("gateway") == 3


def test_kv_follows_the_reports() -> None:
    run = timeline()
    (row,) = run.rows
    assert row.held == ((6.0, 120, 7), (10.5, 0, 0))
    assert [o.at_s for o in run.occupancy] == [6.0, 10.5]
    assert [o.used for o in run.occupancy] == pytest.approx([0.2, 0.1])
    assert [o.useful for o in run.occupancy] == pytest.approx([0.12, 0.0])
    assert (row.context_tokens_at(-1.0), row.context_tokens_at(1.0), row.context_tokens_at(6.0)) == (
        0,
        100,
        120,
    )
    assert (run.origin_s, run.end_s, run.capacity_tokens) == (10.0, 14.0, 1000)


def test_a_lost_engine_holds_nothing_and_seats_nobody() -> None:
    early = [entry(now, value) for now, value in LOG[:8]]
    late = [entry(18.0, ev.EngineLost(engine="e")), entry(19.0, arrived("c2")), entry(20.0, admit())]
    last = [entry(21.0, ev.CallStarted(call="c2", cached_tokens=0)), entry(22.0, finished("c2"))]
    (row,) = read_timeline([*early, *late, *last]).rows
    assert row.held[-1] == (8.0, 0, 0)
    assert row.segments[-3].kind == "gateway"


def test_computing_goes_before_all_else_that_happens_at_once() -> None:
    log: list[tuple[float, ev.AnyEvent]] = [
        (0.0, arrived("c1")),
        (0.0, ev.CallStarted(call="c1", cached_tokens=0)),
        (1.0, arrived("c2")),
        (1.0, ev.ToolStarted(tool_call="t", program="p", tool="bash")),
        (3.0, ev.FirstToken(call="c1")),
        (4.0, finished("c1")),
        (6.0, ev.CallAborted(call="c2", reason="client gone")),
    ]
    (row,) = read_timeline([entry(now, value) for now, value in log]).rows
    assert [(s.kind, s.start_s, s.end_s) for s in row.segments] == [
        ("prefill", 0, 3),
        ("decode", 3, 4),
        ("gateway", 4, 6),
    ]


@pytest.mark.parametrize("seats", [1, 4, 99])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_segments_cover_a_program_without_gap_or_overlap(make_log: MakeLog, seats: int, seed: int) -> None:
    run = read_timeline(make_log(seats=seats, seed=seed))
    assert len(run.rows) == 8
    for row in run.rows:
        calls = run.programs[row.program].calls
        assert row.segments[0].start_s == calls[0].arrived_s - run.origin_s
        assert row.segments[-1].end_s == (calls[-1].finished_s or 0.0) - run.origin_s
        for before, after in zip(row.segments, row.segments[1:], strict=False):
            assert before.end_s == after.start_s
            assert before.kind != after.kind
        assert {segment.kind for segment in row.segments} <= set(KINDS)
        assert all(segment.end_s > segment.start_s for segment in row.segments)
    assert all(0.0 <= o.useful <= o.used <= 1.0 for o in run.occupancy)
