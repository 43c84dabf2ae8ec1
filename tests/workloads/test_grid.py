"""Comparing policies over cells: what is run, what is not run again, and how ratios are taken."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from agentsched.workloads.bench import policies as bench
from agentsched.workloads.grid.cells import CaseError, Cell, Done, Load, closed_cells, find_cases, run_cell
from agentsched.workloads.grid.plots import write_plots
from agentsched.workloads.grid.ratios import Results, lines_of, points_of, ratio
from agentsched.workloads.grid.running import read_done, run_cells
from agentsched.workloads.grid.tables import BEGIN, END, full_table, put_into, short_table

CASE = msgspec.structs.replace(find_cases(["continuum-swe"], None)[0][0], kv_tokens=150_000)
LOAD = Load(case=CASE, concurrency={"1.0": 3, "2.0": 6}, packing_tasks_per_hour=100.0)
POLICIES = ("fcfs-lru", "agentsched")
CELLS = list(closed_cells(LOAD, POLICIES, (1.0, 2.0), seeds=2, programs=12, bounds=False))


def told(done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def done() -> list[Done]:
    return [run_cell(cell, LOAD.packing_tasks_per_hour) for cell in CELLS]


@pytest.fixture(scope="module")
def results(done: list[Done]) -> Results:
    return Results(version="1", command="test", host={"cpu": "any"}, profile="p", points=points_of(done))


def test_cells_pair_policies_on_the_same_programs(done: list[Done]) -> None:
    assert len(CELLS) == 2 * 2 * 2
    assert {cell.programs for cell in CELLS if cell.at == 2.0} == {30}, "five for each place at least"
    for cell in CELLS:
        twins = [other for other in CELLS if (other.seed, other.at) == (cell.seed, cell.at)]
        assert [twin.policy for twin in twins] == list(POLICIES)
    summaries = {each.cell: each.summary for each in done}
    for cell in CELLS:
        twin = msgspec.structs.replace(cell, policy="fcfs-lru")
        assert summaries[cell].context_tokens == summaries[twin].context_tokens


def test_what_was_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cells = tmp_path / "cells.jsonl", CELLS[:2]
    first = run_cells(cells, [LOAD], path, 1, told)
    with path.open("ab") as file:
        file.write(b'{"cell":{"pol')
    assert set(read_done(path)) == set(cells), "a line that was cut off is no result"
    again = run_cells([*cells, CELLS[2]], [LOAD], path, 1, told)
    assert again[:2] == first
    assert set(read_done(path)) == set(CELLS[:3])

    def refuse(cell: Cell, packing: float) -> Done:
        raise AssertionError(f"{cell} was run again")

    monkeypatch.setattr("agentsched.workloads.grid.running.run_cell", refuse)
    assert run_cells(CELLS[:3], [LOAD], path, 1, told) == again


def test_processes_give_what_one_gives(tmp_path: Path, done: list[Done]) -> None:
    spread = run_cells(CELLS[:2], [LOAD], tmp_path / "cells.jsonl", 2, told)
    assert [each.summary.tct_s for each in spread] == [each.summary.tct_s for each in done[:2]]


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
    ours = next(p for p in results.of("continuum-swe") if (p.policy, p.at) == ("agentsched", 2.0))
    assert (ours.seeds, ours.amount) == (2, 6)
    tct = ours.measures["TCT mean, s"]
    seeds = [e.summary.tct_s.mean for e in done if (e.cell.policy, e.cell.at) == ("agentsched", 2.0)]
    assert tct.mean == pytest.approx(sum(seeds) / 2, rel=1e-3)
    assert tct.ratio is not None
    assert all(m.ratio is None for p in results.points if p.policy == "fcfs-lru" for m in p.measures.values())


def test_results_come_back_from_their_file(results: Results) -> None:
    text = lines_of(results)
    assert msgspec.json.decode(text, type=Results) == results
    assert len(text.splitlines()) == len(results.points) + 2


def test_tables_tell_every_measure_and_the_short_one_how_many_times_as_fast(results: Results) -> None:
    full = full_table(results)
    assert "## continuum-swe, pressure 2: 6 at once, 2 seeds" in full
    assert full.count("| TCT P99, s |") == 2
    short = short_table(results)
    assert "pressure 2" in short
    assert short.splitlines()[-1].startswith("| continuum-swe | ")


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


def test_cases_whose_traces_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "kv-cache-tester.jsonl.gz").touch()
    found, missing = find_cases(["tool-paced", "human-paced", "text2sql"], tmp_path)
    assert [case.name for case in found] == ["human-paced", "text2sql"]
    assert missing == ["tool-paced"]
    with pytest.raises(CaseError, match="no case 'tool-placed'; there are: tool-paced, "):
        find_cases(["tool-placed"], None)


def test_the_benchmark_runs_writes_its_results_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = "--cases tool-paced,continuum-swe --policies fcfs-lru,plas --pressures 0.5 --seeds 1"
    more = f"--programs 10 --no-open --jobs 1 --out {tmp_path / 'out'} --results {tmp_path / 'results'}"
    runner = CliRunner(env={"AGENTSCHED_TRACES": None})
    first = runner.invoke(bench.main, f"{words} {more}".split())
    assert first.exit_code == 0, first.output
    assert "Left out: tool-paced." in first.stderr
    assert "| continuum-swe | " in first.stdout
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".json", ".md", ".svg"}
    again = runner.invoke(bench.main, f"{words} {more}".split())
    assert "2 of 2 runs" in again.stderr
    assert again.stderr.count(" runs, ") == 1, "nothing was left to run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pressures one", "--pressures is numbers"),
        ("--policies magic", "no policy 'magic'"),
        ("--cases magic", "no case 'magic'"),
    ],
)
def test_wrong_options_are_refused_by_name(words: str, message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(bench.main, [*words.split(), "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr
