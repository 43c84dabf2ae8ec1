"""Simulations from plain options: who runs, when it ends, and what the summary says of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import msgspec
import pytest

from agentsched.core import events as ev
from agentsched.core.log import Entry
from agentsched.workloads.meter import WINDOW_S, steady_span
from agentsched.workloads.oracle import ScriptOracle
from agentsched.workloads.scripts import Script, Turn
from agentsched.workloads.simulate import OptionError, Options, check_policies, simulate
from agentsched.workloads.summary import Summary, summarise
from agentsched.workloads.traces import TraceError
from agentsched.workloads.uncontended import Serving, alone_s, concurrency_for, occupancy, yardstick
from agentsched.workloads.workload import Workload, load_workload

SWE = "gen:continuum-swe?programs=12"
SERVING = Serving("llama-3.1-8b-h100")


def options(**more: Any) -> Options:
    usual: dict[str, Any] = {"traces": (SWE,), "kv_tokens": 120_000, "concurrency": 6}
    return Options(**usual | more)


def without_clock(summary: Summary) -> Summary:
    """The decisions' real time is the one figure that no seed fixes."""
    return msgspec.structs.replace(summary, decision_us=None)


def starts(entries: list[Entry]) -> list[tuple[str, float]]:
    return [(e.event.program, e.now) for e in entries if isinstance(e.event, ev.ProgramOpened)]


def most_at_once(entries: list[Entry]) -> int:
    live = most = 0
    for entry in entries:
        live += isinstance(entry.event, ev.ProgramOpened) - isinstance(entry.event, ev.ProgramClosed)
        most = max(most, live)
    return most


def test_a_closed_loop_plays_every_program_once_in_seeded_order() -> None:
    orders = []
    for seed in (1, 1, 2):
        entries: list[Entry] = []
        # The generator's own seed is fixed, so that the programs are the same.
        summary = simulate(options(traces=(f"{SWE}&seed=0",), seed=seed), "agentsched", log=entries.append)
        assert (summary.programs, summary.unfinished, most_at_once(entries)) == (12, 0, 6)
        orders.append([name for name, _ in starts(entries)])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


@pytest.mark.parametrize("policy", ["fcfs-lru", "agentsched"])
def test_one_seed_gives_one_result(policy: str) -> None:
    chosen = options(programs=15, lost_orders=0.1, control_delay_ms=20, check=True)
    assert without_clock(simulate(chosen, policy)) == without_clock(simulate(chosen, policy))


def test_a_closed_loop_with_hours_goes_on_until_then_and_stops() -> None:
    entries: list[Entry] = []
    summary = simulate(options(hours=1.0, kv_tokens=450_000), "fcfs-lru", log=entries.append)
    assert summary.programs > 30, "far more than the trace has: they are drawn"
    assert summary.unfinished == 6, "the loop was full when the run stopped"
    assert entries[-1].now <= 3600 == summary.span_s
    assert summary.tasks_per_hour == summary.programs


def test_open_arrivals_come_at_their_rate_and_the_run_drains() -> None:
    entries: list[Entry] = []
    chosen = options(concurrency=None, rate=120.0, hours=1.0, kv_tokens=450_000, arrivals="gamma:2")
    summary = simulate(chosen, "fcfs-lru", log=entries.append)
    arrivals = [at_s for _, at_s in starts(entries)]
    assert 60 < summary.programs == len(arrivals) < 240
    assert max(arrivals) < 3600 < entries[-1].now
    gaps = [b - a for a, b in pairwise(arrivals)]
    assert fmean(gap < 5 for gap in gaps) > 0.25, "they come in bursts"


def test_an_open_run_that_cannot_drain_is_cut_off_and_says_how_many_are_left() -> None:
    chosen = options(concurrency=None, rate=2_000.0, hours=0.2, kv_tokens=60_000)
    summary = simulate(chosen, "fcfs-lru")
    assert summary.unfinished > 100
    assert summary.span_s == pytest.approx(3 * 0.2 * 3600, rel=0.01), "arrivals, and twice as long to drain"


def test_a_number_of_programs_arrives_in_an_open_loop() -> None:
    entries: list[Entry] = []
    simulate(
        options(concurrency=None, rate=60.0, programs=40, kv_tokens=450_000), "fcfs-lru", log=entries.append
    )
    assert len(starts(entries)) == 40
    assert 1_200 < starts(entries)[-1][1] < 4_800


def test_alone_a_program_is_as_fast_as_alone() -> None:
    summary = simulate(options(concurrency=1, kv_tokens=450_000), "agentsched")
    assert summary.slowdown_mean == pytest.approx(1.0, abs=0.001)
    assert summary.slowdown_basis == "alone"
    assert summary.alone_mean_s == pytest.approx(summary.tct_s.mean, rel=0.001)
    assert summary.slowdown_deciles == pytest.approx([1.0] * 9, abs=0.01)
    assert summary.useful_by_window is None, "the course is told of open arrivals"


def test_the_course_of_an_open_run_adds_up_to_the_whole() -> None:
    chosen = options(concurrency=None, rate=60.0, hours=1.0, kv_tokens=450_000, deadline_factor=3.0)
    summary = simulate(chosen, "fcfs-lru")
    assert summary.useful_by_window is not None
    assert summary.ended_by_window is not None
    assert summary.useful_tokens_per_s is not None
    assert summary.span_s is not None
    assert sum(summary.ended_by_window) == summary.programs
    assert len(summary.ended_by_window) == len(summary.useful_by_window)
    useful = WINDOW_S * sum(summary.useful_by_window)
    assert useful == pytest.approx(summary.useful_tokens_per_s * summary.span_s)
    assert summary.slowdown_deciles == sorted(summary.slowdown_deciles or [])
    assert summary.slo_met == pytest.approx((summary.slo_attainment or {})["default"]), "one tenant is all"


def test_what_is_measured_on_the_way_is_what_the_log_says_afterwards() -> None:
    """The same figures as from a real run's log, by code that shares nothing with it."""
    entries: list[Entry] = []
    measured = simulate(options(kv_tokens=60_000), "fcfs-lru", log=entries.append)
    read = summarise(entries, policy="fcfs-lru", seed=0, engine="e0")
    assert measured.recomputed_tokens == read.recomputed_tokens > 0
    for name in ("programs", "tct_s", "post_tool_ttft_s", "context_tokens", "tasks_per_hour", "unfinished"):
        assert getattr(measured, name) == getattr(read, name), name
    assert measured.cached_share == pytest.approx(read.cached_share)
    assert measured.kv_used == pytest.approx(read.kv_used, rel=0.01)
    assert measured.kv_useful == pytest.approx(read.kv_useful, rel=0.05)
    assert measured.kv_idle is not None
    assert 0 < measured.kv_idle < measured.kv_useful < measured.kv_used <= 1


def test_with_bounds_no_run_beats_them() -> None:
    for policy in ("fcfs-lru", "agentsched"):
        summary = simulate(options(kv_tokens=60_000, programs=60, bounds=True), policy)
        assert summary.recompute_bound_tokens is not None
        assert summary.recompute_bound_tokens <= summary.recomputed_tokens
        assert summary.packing_tasks_per_hour is not None
        assert summary.packing_share is not None
        assert 0.2 < summary.packing_share < 1.2


def test_several_engines_share_the_work() -> None:
    summary = simulate(options(engines=3, concurrency=12, programs=40), "fcfs-lru")
    assert summary.capacity_tokens == 360_000
    assert summary.imbalance is not None
    assert 1.0 <= summary.imbalance < 1.5
    assert summary.moves is not None


def test_tenants_have_their_deadlines_and_their_shares() -> None:
    chosen = options(traces=("gen:saga-tenants?programs=60",), kv_tokens=450_000, concurrency=30)
    loose = simulate(replace(chosen, deadline_factor=1_000.0), "fcfs-lru")
    tight = simulate(replace(chosen, deadline_factor=1.0), "fcfs-lru")
    assert loose.slo_attainment is not None
    assert len(loose.slo_attainment) == 10
    assert set(loose.slo_attainment.values()) == {1.0}
    assert tight.slo_attainment is not None
    assert fmean(tight.slo_attainment.values()) < 0.5
    assert loose.fairness_deviation is None or 0 <= loose.fairness_deviation <= 0.9
    assert simulate(options(), "fcfs-lru").slo_attainment is None


def test_programs_that_no_engine_can_hold_are_left_out_and_counted() -> None:
    everything = load_workload((SWE,), kv_tokens=10**9)
    sizes = sorted(s.contexts()[-1] + s.turns[-1].output_tokens for s in everything.scripts)
    some = load_workload((SWE,), kv_tokens=sizes[5])
    assert len(some.scripts) == 6
    assert sum(some.left_out.values()) == 6
    with pytest.raises(TraceError, match="no program fits into 16 KV tokens; the largest context has"):
        load_workload((SWE,), kv_tokens=16)


def test_one_program_in_two_traces_is_an_error() -> None:
    with pytest.raises(TraceError, match="is in another of the traces too"):
        load_workload((SWE, "gen:continuum-swe?programs=3"), kv_tokens=450_000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 3.0}, "either --concurrency .* or --rate"),
        ({"concurrency": None}, "either --concurrency .* or --rate"),
        ({"profile": "abacus"}, "no profile 'abacus': neither one of llama"),
        ({"concurrency": 0}, "--concurrency must be at least 1"),
        ({"kv_tokens": 3}, "--kv-tokens must be at least one block"),
        ({"hours": -1.0}, "--hours must be positive"),
        ({"hours": 1.0, "programs": 3}, "--programs and --hours"),
        ({"lost_orders": 1.0}, "--lost-orders is a share below 1"),
        ({"arrivals": "gamma:2"}, "give --rate with it"),
        ({"concurrency": None, "rate": 1.0, "arrivals": "gamma"}, "as gamma:3"),
        ({"concurrency": None, "rate": 1.0, "arrivals": "poisson:2"}, "as gamma:3"),
        ({"traces": ()}, "at least one trace"),
    ],
)
def test_options_that_make_no_run_are_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options(**wrong)


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(OptionError, match="no policy 'magic'; there are: fcfs-lru, "):
        check_policies(["fcfs-lru", "magic"])


def test_the_steady_part_is_after_as_many_ends_as_live_at_once_and_before_the_last_start() -> None:
    starts_s, ends_s = (
        [0.0, 0.0, 4.0, 5.0, 8.0, 9.0, 12.0, 13.0],
        [4.0, 5.0, 8.0, 9.0, 12.0, 13.0, 17.0, 18.0],
    )
    assert steady_span(starts_s, ends_s, 2) == (5.0, 13.0)
    assert steady_span(starts_s, ends_s, 100) == (5.0, 13.0), "a quarter of all at most"
    assert steady_span([0.0, 0.0], [1.0, 2.0], 2) is None


def test_the_clairvoyant_policy_is_told_what_is_left_of_a_program() -> None:
    script = Script("p", 0.0, (Turn(100, 10, 5.0), Turn(40, 20, 7.0), Turn(60, 5, 0.0, fresh=True)))
    oracle = ScriptOracle({"p": script}.__getitem__)
    rests = [oracle.rest("p", done) for done in range(4)]
    assert rests == [(3, 170, 0.0), (2, 170, 5.0), (1, 65, 7.0), (0, 65, 0.0)]


def test_clairvoyant_is_a_policy_of_simulations_and_plays_sub_agents_too() -> None:
    chosen = options(traces=("gen:text2sql?programs=4",), kv_tokens=40_000, concurrency=8, programs=20)
    assert simulate(chosen, "clairvoyant").programs == 20


def test_a_crowded_host_delays_tools() -> None:
    usual: dict[str, Any] = {"traces": ("gen:saga-web?programs=20",), "concurrency": 20, "kv_tokens": 900_000}
    free, crowded = (simulate(options(**usual, tool_cores=cores), "fcfs-lru") for cores in (None, 0.01))
    assert free.tool_delay_s is None
    assert crowded.tool_calls == free.tool_calls > 0
    assert crowded.tool_delay_s is not None
    assert crowded.oom_kills == 0


# Without contention


def equal_programs(count: int, gap_s: float = 100.0) -> Workload:
    turns = (Turn(1_000, 1, gap_s), Turn(999, 1, 0.0))
    return Workload(tuple(Script(f"p{number}", 0.0, turns) for number in range(count)))


def test_what_programs_hold_is_their_contexts_over_their_lives() -> None:
    """Two calls that take next to nothing: 1,001 tokens through a gap of 100 s."""
    measured = occupancy(equal_programs(5), SERVING, 4)
    assert measured.own_tokens == pytest.approx(4 * 1_001, rel=0.02)
    assert measured.token_seconds == pytest.approx(100_100, rel=0.01)
    assert measured.shared_tokens == 0


@pytest.mark.parametrize(("room", "most"), [(500, 1), (1_100, 1), (5_500, 5), (8_300, 8), (31_000, 30)])
def test_the_largest_loop_that_fits_is_found(room: int, most: int) -> None:
    assert concurrency_for(equal_programs(5), SERVING, room) == most


def test_the_yardstick_is_room_over_need() -> None:
    bound = yardstick(equal_programs(5), SERVING, 8_300)
    assert bound.at.concurrency == 8
    assert bound.tasks_per_hour == pytest.approx(3600 * 8_300 / 100_100, rel=0.01)


def test_a_head_that_a_program_and_its_agents_share_is_held_once_for_them() -> None:
    workload = load_workload(("gen:text2sql?programs=1",), kv_tokens=450_000)
    prefix = max(script.prefix_tokens for script in workload.scripts)
    assert occupancy(workload, SERVING, 3).shared_tokens == pytest.approx(3 * prefix)
    times = alone_s(workload, SERVING)
    assert list(times) == [script.program for script in workload.roots()], (
        "agents are parts of their programs"
    )
