"""Goals, judged on made-up results: each test says what was measured and what has to follow."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentsched.workloads.grid.cells import Cell, Done, Run, make_run
from agentsched.workloads.grid.goals import goals_of
from agentsched.workloads.grid.groups.larger import NO_HOST, WITH_HOST
from agentsched.workloads.grid.results import Goal, Made
from agentsched.workloads.simulate import Options
from agentsched.workloads.summary import Summary, TctStatistics

OPTIONS = Options(traces=("gen:continuum-swe?seed=0",), kv_tokens=150_000, concurrency=2, programs=4)


@pytest.fixture(scope="module")
def plain() -> Summary:
    found = make_run(Run(policy="fcfs-lru", options=OPTIONS), 100.0, 60.0).summary
    assert found is not None
    return found


class Making:
    """Cells with their results, one after another."""

    def __init__(self, plain: Summary) -> None:
        self.plain = plain
        self.cells: list[Cell] = []
        self.found: dict[Run, Done] = {}

    def add(
        self,
        group: str,
        policy: str,
        at: float = 2.0,
        *,
        case: str = "tool-paced",
        row: str = "",
        seed: int = 0,
        mean: float = 100.0,
        p99: float = 300.0,
        **measured: Any,
    ) -> None:
        run = Run(policy=policy, options=_options(seed, len(self.cells)))
        tct = TctStatistics(mean=mean, p50=mean, p95=p99, p99=p99)
        summary = msgspec.structs.replace(self.plain, tct_s=tct, **measured)
        self.cells.append(Cell(group=group, case=case, at=at, row=row, run=run, packing=200.0))
        self.found[run] = Done(run=run, cpu_s=1.0, summary=summary)

    def goal(self, words: str) -> Goal:
        goals = [goal for goal in goals_of(Made.of(self.cells, self.found)) if words in goal.what]
        assert len(goals) == 1, goals
        return goals[0]


def _options(seed: int, number: int) -> Options:
    """Different for every cell, so that no two share a run."""
    return Options(
        traces=OPTIONS.traces, kv_tokens=OPTIONS.kv_tokens, concurrency=2, programs=number + 1, seed=seed
    )


@pytest.fixture
def making(plain: Summary) -> Making:
    return Making(plain)


def test_without_cells_there_are_no_goals() -> None:
    assert goals_of(Made.of([], {})) == []


def test_packing_counts_the_worst_pressure(making: Making) -> None:
    for at, share, ours, theirs in ((1.5, 0.97, 97.0, 100.0), (4.0, 0.92, 96.0, 99.0)):
        making.add("packing", "agentsched", at, packing_share=share, steady_tasks_per_hour=ours)
        making.add("packing", "clairvoyant", at, packing_share=1.0, steady_tasks_per_hour=theirs)
    goal = making.goal("packing bound")
    assert goal.found == "0.920 (tool-paced at 4)"
    assert goal.reached is False
    assert making.goal("clairvoyant").reached is True


def test_the_smaller_engine_has_a_lower_packing_goal(making: Making) -> None:
    making.add("packing", "agentsched", case="tool-paced 200k", packing_share=0.9, steady_tasks_per_hour=1.0)
    assert making.goal("200k").reached is True


def test_programs_at_once_are_judged_against_the_baseline_and_the_best_of_all(making: Making) -> None:
    making.add("at-once", "agentsched", 24, mean=100.0, p99=200.0)
    making.add("at-once", "fcfs-lru", 24, mean=410.0, p99=1_000.0)
    making.add("at-once", "thunderagent", 24, mean=150.0, p99=900.0)
    assert making.goal("times as good as fcfs-lru").found == "4.10 (tool-paced at 24)"
    assert making.goal("P99 TCT, the same").reached is False, "five times, not six"
    best = making.goal("best baseline")
    assert best.found == "1.50 (tool-paced at 24, to thunderagent)"
    assert best.reached is False


def test_tails_count_both_ends_of_the_interval(making: Making) -> None:
    low, high = ("P99 TCT to every baseline, lower end", "P99 TCT to every baseline, upper end")
    for seed, ours in enumerate((100.0, 110.0)):
        making.add("closed", "agentsched", seed=seed, p99=ours)
        making.add("closed", "fcfs-lru", seed=seed, p99=1_000.0)
    assert "(0 of 1 are over)" in making.goal(high).what
    assert making.goal(high).reached is True
    for seed, theirs in enumerate((90.0, 500.0)):
        making.add("closed", "plas", seed=seed, p99=theirs)
    assert "(1 of 2 are over)" in making.goal(high).what
    assert making.goal(low).reached is True, "it may be chance"
    for seed, theirs in enumerate((50.0, 55.0)):
        making.add("closed", "saga", seed=seed, p99=theirs)
    assert "(1 of 3 are over)" in making.goal(low).what


def test_without_pressure_no_measure_may_be_worse(making: Making) -> None:
    making.add("closed", "fcfs-lru", 0.5, tasks_per_hour=100.0)
    making.add("closed", "agentsched", 0.5, tasks_per_hour=98.0)
    goal = making.goal("below pressure")
    assert goal.reached is False
    assert goal.found == "1.020 (tasks an hour, tool-paced at 0.5)"


def test_recomputation_counts_where_it_is_more_than_a_little(making: Making) -> None:
    little: dict[str, Any] = {"recompute_bound_tokens": 10, "recomputed_tokens": 15, "context_tokens": 1_000}
    making.add("closed", "agentsched", 1.0, recompute_over_bound=1.5, **little)
    assert making.goal("recomputed").reached is True
    much: dict[str, Any] = {"recompute_bound_tokens": 100, "recomputed_tokens": 120, "context_tokens": 1_000}
    making.add("closed", "agentsched", 2.0, recompute_over_bound=1.2, **much)
    goal = making.goal("recomputed")
    assert (goal.reached, goal.found) == (False, "1.20 (tool-paced at 2)")


def test_overload_keeps_the_peak_and_drains_at_it(making: Making) -> None:
    """Two hours are twelve windows; the ramp's two count for nothing."""
    hours: dict[str, Any] = {"conditions": {"hours": 2.0}, "unfinished": 0}
    making.add("open", "agentsched", 1.0, useful_by_window=[0.0, 0.0] + 10 * [1_000.0], **hours)
    course = [0.0, 0.0] + 10 * [960.0] + 12 * [900.0]
    ended = [0, 0] + 10 * [30] + 11 * [30] + [3]
    making.add("open", "agentsched", 2.0, useful_by_window=course, ended_by_window=ended, **hours)
    assert making.goal("in overload").found == "0.96 (tool-paced at 2)"
    drained = making.goal("backlog drains")
    assert (drained.found, drained.reached) == ("1.00", True)


def test_a_collapse_is_not_hidden_by_its_drain(making: Making) -> None:
    hours: dict[str, Any] = {"conditions": {"hours": 2.0}, "unfinished": 50}
    making.add("open", "agentsched", 1.0, useful_by_window=12 * [1_000.0], **hours)
    course, ended = 12 * [300.0] + 12 * [1_000.0], 12 * [30] + 12 * [10]
    making.add("open", "agentsched", 2.0, useful_by_window=course, ended_by_window=ended, **hours)
    assert making.goal("in overload").reached is False
    assert making.goal("backlog drains").found == "0.33"


def test_order_is_held_against_each_of_those_that_have_one(making: Making) -> None:
    """A baseline that has collapsed at that rate is easily beaten, so the other one is told too."""
    for policy, slowdown in (("agentsched", 4.0), ("continuum", 180.0), ("thunderagent", 3.0)):
        making.add("order", policy, 0.9, slowdown_mean=slowdown)
    by_arrival = making.goal("tool-paced: mean slowdown at 0.9 of saturation, than program-FCFS")
    assert (by_arrival.found, by_arrival.reached) == ("45.00 (tool-paced at 0.9)", True)
    small_first = making.goal("tool-paced: mean slowdown at 0.9 of saturation, than small ones first")
    assert (small_first.found, small_first.reached) == ("0.75 (tool-paced at 0.9)", False)


def test_the_sustained_rate_is_a_share_of_clairvoyants(making: Making) -> None:
    means = {"Poisson, 6 hours": (300.0, 190.0), "Poisson, 24 hours": (210.0, 190.0)}
    for row, of_policies in means.items():
        for policy, mean in zip(("agentsched", "clairvoyant"), of_policies, strict=True):
            for at, times in ((0.8, 0.9), (0.84, 1.15)):
                making.add(
                    "sustained", policy, at, row=row, mean=mean * times, alone_mean_s=100.0, unfinished=0
                )
    goal = making.goal("sustained rate")
    assert goal.reached is True
    assert "24 hours" in goal.what, "the shorter runs were to find the rate"


def test_the_host_tier_is_held_against_the_baseline_with_and_without_it(making: Making) -> None:
    for row, base, ours in ((NO_HOST, 800.0, 500.0), (WITH_HOST, 300.0, 200.0)):
        making.add("host-tier", "fcfs-lru", 16, case="human-paced", row=row, mean=base)
        making.add("host-tier", "agentsched", 16, case="human-paced", row=row, mean=ours)
    assert making.goal(f"{NO_HOST}: mean").reached is True
    assert making.goal(f"{NO_HOST}: P99").reached is True
    assert making.goal(f"{WITH_HOST}: mean TCT, times").found.startswith("1.50")
    assert making.goal("without it").found == "4.00"


def test_deadlines_name_what_the_baseline_meets(making: Making) -> None:
    making.add("slo", "fcfs-lru", row="no deadlines")
    making.add("slo", "fcfs-lru", row="deadline 4 x alone", slo_met=0.71)
    making.add("slo", "agentsched", row="deadline 4 x alone", slo_met=0.996)
    goal = making.goal("SLO attainment")
    assert "where fcfs-lru has 71.0%" in goal.what
    assert (goal.found, goal.reached) == ("99.6%", True)


def test_disturbance_and_constants_are_held_against_ours_as_it_is(making: Making) -> None:
    making.add("disturbed", "agentsched", mean=100.0)
    making.add("disturbed", "agentsched", row="200 ms of control delay", mean=106.0)
    making.add("sweep", "agentsched", mean=100.0, steady_tasks_per_hour=50.0)
    making.add("sweep", "agentsched", row="overcommit 1.4", mean=96.0, steady_tasks_per_hour=53.0)
    assert making.goal("200 ms").found == "1.060 (tool-paced)"
    gain = making.goal("gain in TCT mean")
    assert (gain.found, gain.reached) == ("4.2% (tool-paced, overcommit 1.4)", True)
    assert making.goal("gain in tasks an hour").reached is False
