"""Comparing policies over cells: what is run, what is not run again, and how ratios are taken."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from agentsched.workloads.bench import policies as bench
from agentsched.workloads.grid.cases import CaseError, Load, find_cases
from agentsched.workloads.grid.cells import Cell, Done, Run, make_run
from agentsched.workloads.grid.goals import goals_of
from agentsched.workloads.grid.groups.runs import BASELINE, Scale, closed, opened
from agentsched.workloads.grid.plots import write_plots
from agentsched.workloads.grid.ratios import ratio
from agentsched.workloads.grid.results import Goal, Made, Place, Results, lines_of, points_of
from agentsched.workloads.grid.running import read_done, run_cells
from agentsched.workloads.grid.tables import BEGIN, END, full_table, put_into, short_table

CASE = msgspec.structs.replace(find_cases(["continuum-swe"], None)[0][0], kv_tokens=150_000)
LOAD = Load(case=CASE, concurrency={"1.0": 3, "2.0": 6}, packing_tasks_per_hour=100.0)
POLICIES = ("fcfs-lru", "agentsched")
SCALE = Scale(seeds=2, programs=12, bounds=False)
CELLS = list(closed("closed", LOAD, SCALE, policies=POLICIES, seeds=range(2), pressures=(1.0, 2.0)))
RUNS = [cell.run for cell in CELLS]
MOST_S = 60.0


def told(done: int, total: int) -> None:
    assert 0 <= done <= total


def made_of(done: list[Done]) -> Made:
    return Made.of(CELLS, {each.run: each for each in done})


@pytest.fixture(scope="module")
def done() -> list[Done]:
    return [make_run(run, LOAD.packing_tasks_per_hour, MOST_S) for run in RUNS]


@pytest.fixture(scope="module")
def results(done: list[Done]) -> Results:
    return Results(
        version="1",
        command="test",
        host={"cpu": "any"},
        profile="p",
        about={"closed": "Closed loops."},
        goals=[Goal(what="be fast", wanted=">= 1", found="2", reached=True)],
        points=points_of(made_of(done), {"closed": BASELINE}),
    )


def test_cells_pair_policies_on_the_same_programs(done: list[Done]) -> None:
    assert len(CELLS) == 2 * 2 * 2
    assert {cell.run.options.programs for cell in CELLS if cell.at == 2.0} == {30}, "five a place at least"
    contexts: dict[tuple[int, float], set[int]] = {}
    for cell, each in zip(CELLS, done, strict=True):
        assert each.summary is not None
        contexts.setdefault((cell.run.options.seed, cell.at), set()).add(each.summary.context_tokens)
    assert [len(each) for each in contexts.values()] == [1] * 4
    assert len(set().union(*contexts.values())) == 4, "seeds and pressures are different programs"


def test_what_was_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.jsonl"
    _, first = run_cells(lambda known: CELLS[:2], path, 1, MOST_S, told)
    with path.open("ab") as file:
        file.write(b'{"run":{"pol')
    assert set(read_done(path)) == set(RUNS[:2]), "a line that was cut off is no result"
    first = dict(first)
    _, again = run_cells(lambda known: CELLS[:3], path, 1, MOST_S, told)
    assert {run: again[run] for run in RUNS[:2]} == first
    assert set(read_done(path)) == set(RUNS[:3])

    def refuse(run: Run, packing: float, most_s: float) -> Done:
        raise AssertionError(f"{run} was made again")

    monkeypatch.setattr("agentsched.workloads.grid.running.make_run", refuse)
    twin = msgspec.structs.replace(CELLS[0], group="other")
    cells, known = run_cells(lambda known: [*CELLS[:3], twin], path, 1, MOST_S, told)
    assert known == again
    assert cells[3].run == cells[0].run, "cells of different groups share a run"


def test_what_is_wanted_next_may_depend_on_what_came_out(tmp_path: Path) -> None:
    def wanted(known: dict[Run, Done]) -> list[Cell]:
        return CELLS[:2] if RUNS[0] in known else CELLS[:1]

    cells, known = run_cells(wanted, tmp_path / "runs.jsonl", 1, MOST_S, told)
    assert cells == CELLS[:2]
    assert set(known) == set(RUNS[:2])


def test_a_run_that_takes_too_long_is_stopped_and_the_table_says_so(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    _, known = run_cells(lambda known: CELLS[:1], path, 1, 1e-6, told)
    stopped = known[RUNS[0]]
    assert stopped.summary is None
    assert stopped.stopped.startswith("more than 1e-06 s")
    cells = [CELLS[0], CELLS[1]]
    made = Made.of(cells, known | {RUNS[1]: make_run(RUNS[1], 100.0, MOST_S)})
    results = Results(
        version="1",
        command="t",
        host={},
        profile="p",
        about={"closed": ""},
        goals=[],
        points=points_of(made, {"closed": BASELINE}),
    )
    assert "Not measured: fcfs-lru at 1, 1 seeds: more than 1e-06 s of computing." in full_table(results)
    assert set(read_done(path, most_s=MOST_S)) == set(), "with more time it is tried again"
    assert set(read_done(path)) == {RUNS[0]}


def test_processes_give_what_one_gives(tmp_path: Path, done: list[Done]) -> None:
    _, spread = run_cells(lambda known: CELLS[:2], tmp_path / "runs.jsonl", 2, MOST_S, told)
    for each in done[:2]:
        other = spread[each.run].summary
        assert each.summary is not None
        assert other is not None
        assert other.tct_s == each.summary.tct_s


def test_ratios_are_paired_by_seed_and_averaged_as_logarithms() -> None:
    """By hand: logs of 1/2 and 1/8 have mean log 1/4, and t(0.975, 1) = 12.706."""
    found = ratio({0: 1.0, 1: 1.0, 2: 9.0}, {0: 2.0, 1: 8.0})
    assert found is not None
    assert found.mean == pytest.approx(0.25)
    assert found.low is not None
    assert found.high is not None
    assert math.log(found.high / found.mean) == pytest.approx(12.706 * math.log(2), rel=1e-4)
    assert found.low * found.high == pytest.approx(found.mean**2)


def test_ratios_have_floors_and_need_something_to_divide_by() -> None:
    floored = ratio({0: 0.0}, {0: 0.1}, floor=0.01)
    assert floored is not None
    assert floored.mean == pytest.approx(0.1)
    assert floored.low is None, "one seed tells nothing of the spread"
    assert ratio({0: 1.0}, {0: 0.0}) is None
    assert ratio({0: 1.0}, {1: 1.0}) is None


def test_points_hold_means_and_ratios_of_all_seeds(done: list[Done], results: Results) -> None:
    assert len(results.points) == 4
    ours = next(p for p in results.of("closed", CASE.name) if (p.policy, p.at) == ("agentsched", 2.0))
    assert (ours.seeds, ours.amount) == (2, 6)
    tct = ours.measures["TCT mean, s"]
    seeds = made_of(done).summaries(Place("closed", CASE.name, 2.0), "agentsched").values()
    assert tct.mean == pytest.approx(sum(s.tct_s.mean for s in seeds) / 2, rel=1e-3)
    assert tct.ratio is not None
    assert all(m.ratio is None for p in results.points if p.policy == "fcfs-lru" for m in p.measures.values())


def test_results_come_back_from_their_file(results: Results) -> None:
    text = lines_of(results)
    assert msgspec.json.decode(text, type=Results) == results
    assert len(text.splitlines()) == len(results.points) + 2


def test_tables_tell_every_measure_and_the_short_one_how_many_times_as_fast(results: Results) -> None:
    full = full_table(results)
    assert "1 of 1 goals are reached." in full
    assert "| be fast | >= 1 | 2 | yes |" in full
    assert "### continuum-swe, pressure 2: 6 at once, 2 seeds" in full
    assert full.count("| TCT P99, s |") == 2
    short = short_table(results)
    assert "pressure 2" in short
    assert short.splitlines()[-3].startswith("| continuum-swe | ")
    assert short.splitlines()[-1].startswith("1 of 1 goals are reached: [")


def test_the_short_table_replaces_what_is_between_its_markers() -> None:
    assert put_into(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\n\nnew\n\n{END}\nb"
    with pytest.raises(ValueError, match="no place for the table"):
        put_into("a", "new")


def test_plots_are_the_same_for_the_same_results(results: Results, tmp_path: Path) -> None:
    paths = write_plots(results, tmp_path / "a")
    assert [path.stem for path in paths] == ["policies-pressure", "policies-throughput", "policies-tail"]
    for path, other in zip(paths, write_plots(results, tmp_path / "b"), strict=True):
        assert path.read_bytes() == other.read_bytes()
        assert b"agentsched" in path.read_bytes()


def test_open_runs_are_plotted_as_far_as_they_were_made(tmp_path: Path) -> None:
    cells = [opened("open", LOAD, policy, 0, at, 0.5) for policy in POLICIES for at in (0.5, 2.0)]
    found = {cell.run: make_run(cell.run, cell.packing, MOST_S) for cell in cells[1:]}
    found[cells[0].run] = Done(run=cells[0].run, cpu_s=9.0, stopped="more than 9 s of computing")
    made = Made.of(cells, found)
    results = Results(
        version="1",
        command="t",
        host={},
        profile="p",
        about={"open": ""},
        goals=goals_of(made),
        points=points_of(made, {"open": BASELINE}),
    )
    names = [path.stem for path in write_plots(results, tmp_path)]
    assert names == ["policies-collapse", "policies-overload", "policies-slowdown"]
    courses = {point.policy: point.course for point in results.points if point.at == 2.0}
    assert all(course and len(course) > 3 for course in courses.values())
    assert "Not measured: fcfs-lru at 0.5, 1 seeds: more than 9 s" in full_table(results)


def test_cases_whose_traces_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "kv-cache-tester.jsonl.gz").touch()
    found, missing = find_cases(["tool-paced", "human-paced", "text2sql"], tmp_path)
    assert [case.name for case in found] == ["human-paced", "text2sql"]
    assert missing == ["tool-paced"]
    with pytest.raises(CaseError, match="no case 'tool-placed'; there are: tool-paced, "):
        find_cases(["tool-placed"], None)


def test_the_benchmark_runs_writes_its_results_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = "--groups disturbed --cases tool-paced,continuum-swe --seeds 1 --no-bounds"
    more = f"--programs 10 --jobs 1 --out {tmp_path / 'out'} --results {tmp_path / 'results'}"
    runner = CliRunner(env={"AGENTSCHED_TRACES": None})
    first = runner.invoke(bench.main, f"{words} {more}".split())
    assert first.exit_code == 0, first.output
    assert "Left out: tool-paced." in first.stderr
    assert "2 of 2 goals are reached." in first.stdout
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"policies.json", "policies.md"}
    again = runner.invoke(bench.main, f"{words} {more}".split())
    assert "3 of 3 runs" in again.stderr
    assert again.stderr.count(" runs, ") == 1, "nothing was left to run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--groups magic", "no group 'magic'; there are: closed, "),
        ("--cases magic", "no case 'magic'"),
    ],
)
def test_wrong_options_are_refused_by_name(words: str, message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(bench.main, [*words.split(), "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr
