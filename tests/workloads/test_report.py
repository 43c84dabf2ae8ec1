"""The report: one file, self-contained, honest about the outcome, and deaf to hostile names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from agentsched.core import events as ev
from agentsched.core.log import Entry
from agentsched.workloads.report import ReportError, Run, TaskResult, write_report
from agentsched.workloads.summary import summarise

MakeLog = Callable[..., list[Entry]]
HOSTILE = '</script><script>alert("x")</script><img src=http://evil.example/x>'
HOST: dict[str, str | int | float] = {"cpu": "Imaginary 9000", "cores": 2}


class Page(HTMLParser):
    """What a browser would load or run: addresses of elements, and scripts apart from other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in = tag
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def runs(
    make_log: MakeLog, seats: Sequence[tuple[str, int]], rounds: int = 2, prefix: str = "task"
) -> list[Run]:
    made = []
    for number in range(rounds):
        for policy, let_in in seats:
            entries = make_log(seats=let_in, seed=number + 1, programs=5, prefix=prefix)
            summary = summarise(
                entries, policy=policy, seed=number, engine="synthetic", round=number, host=HOST
            )
            made.append(Run(summary, entries))
    return made


TASKS = [
    TaskResult(task="fix-parser", policy="fcfs-lru", round=0, passed=True),
    TaskResult(task="fix-parser", policy="agentsched", round=0, passed=False, detail="test_x"),
]


@pytest.fixture(scope="module")
def page(make_log: MakeLog, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report(path, runs(make_log, [("fcfs-lru", 99), ("agentsched", 3)]), TASKS, HOST)
    return Page(path.read_text("utf-8"))


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert page.loads == []
    assert "link" not in page.tags
    own = [script for script in page.scripts if len(script) < 1_000_000]
    assert len(own) == len(page.scripts) - 1  # plotly.js, once
    assert not any("import(" in script or "fetch(" in script for script in own)
    assert not re.search(r"@import|url\(", page.text)


def test_the_page_says_who_was_faster_and_what_failed(page: Page) -> None:
    assert re.search(r"Programs finished \d+\.\d\d times as fast with agentsched as with fcfs-lru", page.text)
    assert "1 of 2 task runs passed" in page.text
    assert "FAILED: test_x" in page.text
    assert "Imaginary 9000" in page.text
    assert sum("Plotly.newPlot" in script for script in page.scripts if len(script) < 1_000_000) == 5
    assert page.tags.count("svg") == 1


def test_a_worse_result_is_said_as_plainly(make_log: MakeLog, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", runs(make_log, [("fcfs-lru", 3), ("agentsched", 99)]), [], HOST)
    assert "agentsched was slower than fcfs-lru" in Page((tmp_path / "r.html").read_text("utf-8")).text


def test_one_policy_alone_has_no_ratio(make_log: MakeLog, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", runs(make_log, [("agentsched", 3)], rounds=1), [], HOST)
    assert "no ratio" in Page((tmp_path / "r.html").read_text("utf-8")).text


def test_hostile_names_stay_text(make_log: MakeLog, tmp_path: Path, page: Page) -> None:
    bad = runs(make_log, [("fcfs-lru", 99), ("agentsched", 3)], prefix=HOSTILE)
    bad = [Run(run.summary, [_hostile_command(entry) for entry in run.entries]) for run in bad]
    bad = [Run(msgspec.structs.replace(run.summary, engine=HOSTILE), run.entries) for run in bad]
    tasks = [TaskResult(task=HOSTILE, policy="agentsched", round=0, passed=False, detail=HOSTILE)]
    write_report(tmp_path / "r.html", bad, tasks, {"cpu": HOSTILE})
    seen = Page((tmp_path / "r.html").read_text("utf-8"))
    assert "img" not in seen.tags
    assert seen.loads == []
    assert seen.tags.count("script") == page.tags.count("script")
    assert not any("<img" in script for script in seen.scripts if len(script) < 1_000_000)
    assert "alert" in seen.text


def _hostile_command(entry: Entry) -> Entry:
    if isinstance(entry.event, ev.ToolStarted):
        command = entry.event.command.replace("pytest", HOSTILE).replace("grep", "<b>\x00\x1b[31m")
        return Entry(now=entry.now, event=msgspec.structs.replace(entry.event, command=command))
    return entry


def test_many_programs_are_cut_and_the_page_says_so(make_log: MakeLog, tmp_path: Path) -> None:
    entries = make_log(seats=5, programs=45)
    summary = summarise(entries, policy="agentsched", seed=0, engine="synthetic", host=HOST)
    write_report(tmp_path / "r.html", [Run(summary, entries)], [], HOST)
    assert "The first 40 of 45 programs" in Page((tmp_path / "r.html").read_text("utf-8")).text


def test_a_path_that_cannot_be_written_is_named(make_log: MakeLog, tmp_path: Path) -> None:
    one = runs(make_log, [("agentsched", 3)], rounds=1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReportError, match=r"cannot write the report to .*file/r\.html"):
        write_report(tmp_path / "file" / "r.html", one, [], HOST)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ReportError, match="folder"):
        write_report(tmp_path / "folder", one, [], HOST)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs is empty"):
        write_report(tmp_path / "r.html", [], [], HOST)
