"""Summaries and comparisons against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from rich.console import Console

from agentsched.core import events as ev
from agentsched.core.decisions import Admit
from agentsched.core.log import Entry
from agentsched.workloads.compare import Comparison, compare, comparison_table
from agentsched.workloads.summary import Summary, SummaryError, percentile, summarise

MakeLog = Callable[..., list[Entry]]


def event(now: float, value: ev.AnyEvent) -> Entry:
    return Entry(now=now, event=value)


def call(
    name: str,
    program: str,
    times: tuple[float, float, float, float],
    *,
    prompt: int,
    cached: int,
    recomputed: int = 0,
) -> list[Entry]:
    arrived, started, first, finished = times
    return [
        event(
            arrived, ev.CallArrived(call=name, program=program, prompt_tokens=prompt, max_output_tokens=10)
        ),
        event(started, ev.CallStarted(call=name, cached_tokens=cached)),
        event(first, ev.FirstToken(call=name)),
        event(
            finished,
            ev.CallFinished(
                call=name,
                prompt_tokens=prompt,
                cached_tokens=cached,
                output_tokens=10,
                recomputed_tokens=recomputed,
            ),
        ),
    ]


def tiny_log() -> list[Entry]:
    """Two programs. a: 100 to 110 with 3 s of waiting and 1 s of recomputing. b: 102 to 108."""
    entries = [
        event(99.0, ev.EngineAttached(engine="e", capacity_tokens=1000, block_tokens=10)),
        *call("a1", "a", (100.0, 101.0, 102.0, 103.0), prompt=100, cached=0),
        *call("b1", "b", (102.0, 104.0, 105.0, 108.0), prompt=80, cached=20),
        event(103.5, ev.ToolStarted(tool_call="t", program="a", tool="bash", command="pytest")),
        event(
            104.5,
            ev.ToolFinished(
                tool_call="t", program="a", exit_status=0, wall_s=1.0, cpu_s=0.75, peak_memory_bytes=5000
            ),
        ),
        *call("a2", "a", (105.0, 107.0, 109.0, 110.0), prompt=200, cached=100, recomputed=50),
        event(
            100.0,
            ev.StepReport(
                engine="e",
                free_tokens=500,
                evictable_tokens=0,
                held=(ev.Held(program="a", device_tokens=300),),
                snapshot=True,
            ),
        ),
        event(105.0, ev.StepReport(engine="e", free_tokens=0, evictable_tokens=0)),
    ]
    return sorted(entries, key=lambda entry: entry.now)


def test_every_figure_by_hand() -> None:
    summary = summarise(tiny_log(), policy="fcfs-lru", seed=7, engine="e", round=2, host={"cpu": "x"})
    assert (summary.programs, summary.unfinished, summary.aborted_calls) == (2, 0, 0)
    assert (summary.tct_s.mean, summary.tct_s.p50) == (8.0, 8.0)
    assert summary.tct_s.p95 == pytest.approx(9.8)
    assert summary.tct_s.p99 == pytest.approx(9.96)
    assert summary.post_tool_ttft_s is not None
    assert summary.post_tool_ttft_s.p50 == summary.post_tool_ttft_s.p99 == 4.0
    assert (summary.recomputed_tokens, summary.context_tokens) == (50, 300)
    assert summary.tasks_per_hour == 720.0
    assert summary.max_slowdown == pytest.approx(10 / 6)
    assert summary.slowdown_basis == "estimated"
    assert summary.cached_share == pytest.approx(120 / 380)
    assert (summary.kv_used, summary.kv_useful) == (0.75, 0.3)
    assert (summary.tool_calls, summary.tool_cpu_s, summary.tool_peak_memory_bytes) == (1, 0.75, 5000)
    assert (summary.seed, summary.engine, summary.capacity_tokens, summary.round) == (7, "e", 1000, 2)


def test_measured_times_alone_replace_the_estimate() -> None:
    alone = {"a": 2.5, "b": 3.0}
    summary = summarise(tiny_log(), policy="p", seed=0, engine="e", host={}, alone_s=alone)
    assert (summary.max_slowdown, summary.slowdown_basis) == (4.0, "alone")
    with pytest.raises(SummaryError, match="'b'"):
        summarise(tiny_log(), policy="p", seed=0, engine="e", host={}, alone_s={"a": 2.5})


def test_the_json_has_the_names_that_every_command_shares() -> None:
    document = msgspec.json.decode(msgspec.json.encode(summarise(tiny_log(), policy="p", seed=0, engine="e")))
    promised = {"policy", "programs", "tct_s", "post_tool_ttft_s", "recomputed_tokens", "context_tokens"}
    promised |= {"tasks_per_hour", "max_slowdown", "seed", "engine", "capacity_tokens", "host"}
    assert promised <= document.keys()
    assert list(document["tct_s"]) == ["mean", "p50", "p95", "p99"]
    assert list(document["post_tool_ttft_s"]) == ["p50", "p90", "p99"]
    assert document["host"]["cores"] >= 1


def test_programs_that_never_finished_are_counted_apart() -> None:
    lost = [
        event(100.0, ev.CallArrived(call="c1", program="c", prompt_tokens=5, max_output_tokens=1)),
        event(101.0, ev.CallAborted(call="c1", reason="client gone")),
    ]
    entries = sorted(tiny_log() + lost, key=lambda entry: entry.now)
    summary = summarise(entries, policy="p", seed=0, engine="e", host={})
    assert (summary.programs, summary.unfinished, summary.aborted_calls) == (2, 1, 1)
    with pytest.raises(SummaryError, match="no program finished"):
        summarise(lost, policy="p", seed=0, engine="e", host={})
    with pytest.raises(SummaryError, match="no call"):
        summarise([], policy="p", seed=0, engine="e", host={})


def test_one_call_programs_have_no_post_tool_ttft() -> None:
    entries = call("a1", "a", (0.0, 0.0, 1.0, 2.0), prompt=10, cached=0)
    summary = summarise(entries, policy="p", seed=0, engine="e", host={})
    assert summary.post_tool_ttft_s is None
    Console(file=None, quiet=True).print(comparison_table([summary]))


def test_percentiles_interpolate() -> None:
    assert percentile([4.0], 99) == 4.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile(list(range(101)), 95) == 95.0


def with_mean(policy: str, number: int, mean: float) -> Summary:
    one = summarise(tiny_log(), policy=policy, seed=0, engine="e", round=number, host={})
    return msgspec.structs.replace(one, tct_s=msgspec.structs.replace(one.tct_s, mean=mean))


def compared(*pairs: tuple[float, float]) -> Comparison:
    runs = [
        with_mean(policy, number, mean)
        for number, pair in enumerate(pairs)
        for policy, mean in zip(("base", "ours"), pair, strict=True)
    ]
    return compare(runs, baseline="base", ours="ours")


def test_rounds_are_pairs() -> None:
    outcome = compared((20.0, 10.0), (40.0, 5.0))
    assert outcome.ratios == [2.0, 8.0]
    assert outcome.ratio == pytest.approx(4.0)
    assert (outcome.low, outcome.high) == (2.0, 8.0)


def test_the_sentence_says_what_happened() -> None:
    assert "4.00 times as fast with ours" in compared((20.0, 10.0), (40.0, 5.0)).sentence()
    assert "ours was slower than base" in compared((10.0, 20.0), (10.0, 12.0)).sentence()
    assert "no clear difference" in compared((10.0, 9.0), (10.0, 12.0)).sentence()
    assert "one round only" in compared((20.0, 10.0)).sentence()


def test_rounds_without_a_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="no round has"):
        compare([with_mean("base", 0, 1.0), with_mean("ours", 1, 1.0)], baseline="base", ours="ours")
    with pytest.raises(ValueError, match="TCT of 0"):
        compared((1.0, 0.0))


def test_admission_moves_waiting_but_not_its_sum(make_log: MakeLog) -> None:
    narrow, wide = (
        summarise(make_log(seats=seats), policy="p", seed=1, engine="e", host={}) for seats in (4, 99)
    )
    assert narrow.programs == wide.programs == 8
    assert narrow.recomputed_tokens < wide.recomputed_tokens
    assert narrow.tct_s.mean < wide.tct_s.mean
    assert narrow.tool_cpu_s == pytest.approx(wide.tool_cpu_s)
    assert wide.max_slowdown > 1.0


def test_decisions_in_the_log_change_no_measure() -> None:
    admit = Entry(now=100.0, decision=Admit(cause=1, epoch=1, seq=1, program="a", engine="e"))
    entries = tiny_log()
    plain = summarise(entries, policy="p", seed=0, engine="e", host={})
    assert summarise([entries[0], admit, *entries[1:]], policy="p", seed=0, engine="e", host={}) == plain
