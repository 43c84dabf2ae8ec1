"""The groups of cells: what each wants, and how those that search go on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import pytest

from agentsched.core.ledger import Ledger
from agentsched.core.policies.overcommit import Overcommit
from agentsched.workloads.grid.by_hand import CONSTANTS, set_by_hand
from agentsched.workloads.grid.cases import CASE_NAMES, FILES, GENERATED, PRESSURES, Load
from agentsched.workloads.grid.cells import Cell, Done, Run, make_run
from agentsched.workloads.grid.groups import GROUPS
from agentsched.workloads.grid.groups.arriving import bracket, next_rate, sustained_rate
from agentsched.workloads.grid.groups.runs import Scale
from agentsched.workloads.simulate import POLICIES, Options
from agentsched.workloads.summary import Summary

LOADS = {
    name: Load(
        case=case,
        concurrency={str(pressure): int(10 * pressure) for pressure in PRESSURES},
        packing_tasks_per_hour=200.0,
    )
    for name, case in (FILES | GENERATED).items()
}
SCALE = Scale(seeds=2)


@pytest.fixture(scope="module")
def summary() -> Summary:
    options = Options(traces=("gen:continuum-swe?seed=0",), kv_tokens=150_000, concurrency=2, programs=4)
    found = make_run(Run(policy="fcfs-lru", options=options), 100.0, 60.0).summary
    assert found is not None
    return found


def cells_of(name: str, found: Mapping[Run, Done], scale: Scale = SCALE) -> list[Cell]:
    group = GROUPS[name]
    return list(group.cells(scale, {case: LOADS[case] for case in group.cases}, found))


@pytest.mark.parametrize("name", GROUPS)
def test_groups_want_policies_and_cases_that_there_are(name: str) -> None:
    group, cells = GROUPS[name], cells_of(name, {})
    assert cells
    assert set(group.cases) <= set(CASE_NAMES)
    assert {cell.case for cell in cells} == set(group.cases)
    assert {cell.group for cell in cells} == {name}
    assert {cell.run.policy for cell in cells} <= set(POLICIES)
    assert {cell.run.options.seed for cell in cells} <= {0, 1}
    assert len(set(cells)) == len(cells)
    assert cells == cells_of(name, {}), "the same every time"


def test_groups_of_ablation_and_disturbance_share_runs_with_the_closed_loops() -> None:
    closed = {cell.run for cell in cells_of("closed", {})}
    for name in ("ablation", "disturbed", "sweep"):
        usual = [c.run for c in cells_of(name, {}) if c.run.policy == "agentsched" and not c.row]
        shared = [run for run in usual if run.options.kv_tokens == 450_000]
        assert shared
        assert set(shared) <= closed


def test_only_sharing_differs_where_it_is_off() -> None:
    assert all(not cell.run.options.sharing for cell in cells_of("unshared", {}))
    assert all(cell.run.options.sharing for cell in cells_of("closed", {}))


def test_the_host_tier_is_four_times_the_device() -> None:
    sizes = {cell.row: cell.run.options.host_tokens for cell in cells_of("host-tier", {})}
    assert list(sizes.values()) == [0, 4 * 450_000]


def test_closed_loops_have_no_deadlines() -> None:
    """A policy may heed them: they belong to the group that is about them."""
    for name in set(GROUPS) - {"slo"}:
        assert all(cell.run.options.deadline_factor is None for cell in cells_of(name, {}))


def test_deadlines_are_what_seven_tenths_of_the_baseline_meet(summary: Summary) -> None:
    deciles = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 9.0]
    free = cells_of("slo", {})
    assert {cell.run.policy for cell in free} == {"fcfs-lru"}
    served = msgspec.structs.replace(summary, slowdown_deciles=deciles)
    found = {cell.run: Done(run=cell.run, cpu_s=1.0, summary=served) for cell in free}
    cells = [cell for cell in cells_of("slo", found) if cell.run not in found]
    assert {cell.run.options.deadline_factor for cell in cells} == {4.0}
    assert {cell.row for cell in cells} == {"deadline 4 x alone"}
    assert {"agentsched", "fcfs-lru"} <= {cell.run.policy for cell in cells}


def test_order_is_judged_at_nine_tenths_of_what_ours_serves(summary: Summary) -> None:
    cells = cells_of("order", {})
    served = msgspec.structs.replace(summary, steady_tasks_per_hour=150.0)
    found = {cell.run: Done(run=cell.run, cpu_s=1.0, summary=served) for cell in cells}
    after = [cell for cell in cells_of("order", found) if cell.run not in found]
    assert {cell.at for cell in after} == {0.675}
    assert {cell.run.options.rate for cell in after} == {135.0}


def test_the_sustained_rate_is_found_by_halving(summary: Summary) -> None:
    """Programs that take twice as long at 0.77 of the packing bound, and exponentially longer beyond."""
    found: dict[Run, Done] = {}
    rounds = 0
    while missing := [cell for cell in cells_of("sustained", found) if cell.run not in found]:
        rounds += 1
        for cell in missing:
            mean = msgspec.structs.replace(summary.tct_s, mean=2.0 * 8.0 ** (cell.at - 0.77))
            each = msgspec.structs.replace(summary, tct_s=mean, alone_mean_s=1.0, unfinished=0)
            found[cell.run] = Done(run=cell.run, cpu_s=1.0, summary=each)
    cells = cells_of("sustained", found)
    for row in {cell.row for cell in cells}:
        tried = {cell.at: 2.0 * 8.0 ** (cell.at - 0.77) for cell in cells if cell.row == row}
        assert next_rate(tried) is None
        assert sustained_rate(tried) == pytest.approx(0.77, abs=1e-6)
    whole = {(cell.row, cell.run.policy, cell.at) for cell in cells if cell.run.options.hours == SCALE.hours}
    assert rounds <= 8
    assert len(whole) == 2 * 2 * 2, "what a quarter of the hours found is right, and so two rates are enough"


@pytest.mark.parametrize(("limit", "tries"), [(0.60, 6), (0.77, 2), (0.81, 3), (1.0, 7)])
def test_a_rate_is_found_from_a_guess_that_is_wrong(limit: float, tries: int) -> None:
    known: dict[float, float] = {}
    while (at := next_rate(known, (0.75, 0.78))) is not None:
        known[at] = 2.0 * 8.0 ** (at - limit)
    assert sustained_rate(known) == pytest.approx(limit, abs=1e-6)
    assert len(known) <= tries


def test_a_rate_that_leaves_programs_unfinished_bounds_the_rest() -> None:
    assert bracket({}) == (0.4, 1.2)
    known = {0.7: 1.2, 0.9: math.inf}
    assert bracket(known) == (0.7, 0.9)
    assert sustained_rate(known) == 0.7, "nothing to interpolate with"
    assert next_rate({0.7: 1.2, 0.72: 2.5}) is None
    assert sustained_rate({0.5: math.inf}) == 0.4, "not even the least that is tried"


def test_constants_are_set_for_a_run_and_taken_back() -> None:
    usual = Overcommit.FIRST, Overcommit.MOST, Overcommit.RELIEF_SHARE, Ledger.price
    with set_by_hand((("overcommit", 1.4), ("relief share", 0.1), ("price, times", 2.0))):
        assert (Overcommit.FIRST, Overcommit.LEAST, Overcommit.MOST) == (1.4, 1.4, 1.4)
        assert Overcommit(0.0).factor(5, 1e4, 1e3) == 1.4
        assert Overcommit.RELIEF_SHARE == 0.1
        assert Ledger.price is not usual[3]
    assert (Overcommit.FIRST, Overcommit.MOST, Overcommit.RELIEF_SHARE, Ledger.price) == usual
    with (
        pytest.raises(ValueError, match="no constant 'magic'; there are: overcommit, "),
        set_by_hand((("magic", 1.0),)),
    ):
        pass


def test_every_constant_of_the_sweep_changes_what_is_decided() -> None:
    options = Options(traces=("gen:continuum-swe?seed=0",), kv_tokens=300_000, concurrency=20, programs=40)
    values = {"overcommit": 2.0, "relief share": 1.0, "price, times": 50.0}
    assert values.keys() == CONSTANTS.keys()

    def mean(constants: tuple[tuple[str, float], ...]) -> float:
        done = make_run(Run(policy="agentsched", options=options, constants=constants), 100.0, 60.0)
        assert done.summary is not None
        return done.summary.tct_s.mean

    usual = mean(())
    assert mean(()) == usual
    for name, value in values.items():
        assert mean(((name, value),)) != usual, name
