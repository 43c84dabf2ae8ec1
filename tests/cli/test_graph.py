"""``agentsched graph``: exports and drawings from an event log, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import networkx as nx
import pytest
from click.testing import CliRunner, Result

from agentsched.cli.graph import graph
from agentsched.core import events as ev
from agentsched.core.log import Entry, Header, encode
from agentsched.graphs.export import from_json


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two programs of two calls; the second has not ended."""
    lines = [encode(Header(agentsched="0", policy="agentsched", epoch=1, started_unix_s=0.0))]
    for number, program in enumerate(("one", "two")):
        now = 10.0 * number
        for index in (1, 2):
            call = f"{program}-{index}"
            refs = (ev.ToolCallRef(tool_call=f"t-{call}", tool="bash"),)
            for event in (
                ev.CallArrived(call=call, program=program, prompt_tokens=50, max_output_tokens=9),
                ev.CallStarted(call=call, cached_tokens=0),
                ev.CallFinished(
                    call=call, prompt_tokens=50 * index, cached_tokens=0, output_tokens=5, tool_calls=refs
                ),
            ):
                now += 1.0
                lines.append(encode(Entry(now=now, event=event)))
    lines.append(encode(Entry(now=30.0, event=ev.ProgramClosed(program="one"))))
    path = tmp_path / "events.log"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(graph, [str(arg) for arg in args])


def test_one_program_as_json(log: Path) -> None:
    done = run(log, "--program", "one")
    assert done.exit_code == 0
    aeg = from_json(done.stdout)
    assert (aeg.program, len(aeg.calls), aeg.closed_s) == ("one", 2, 30.0)


def test_the_model_of_all_is_the_default(log: Path) -> None:
    document = json.loads(run(log).stdout)
    assert document["programs"] == 2
    edges = {(e["source"], e["target"]): e["count"] for e in document["graph"]["edges"]}
    assert edges == {("(begin)", "bash"): 2, ("bash", "bash"): 2, ("bash", "(end)"): 1}


@pytest.mark.parametrize("which", [("--model",), ("--program", "two")])
def test_the_format_follows_the_name_of_the_file(log: Path, tmp_path: Path, which: tuple[str, ...]) -> None:
    for name in ("g.graphml", "g.svg", "g.json"):
        done = run(log, *which, "--out", tmp_path / name)
        assert done.exit_code == 0
        assert str(tmp_path / name) in done.output
    assert nx.read_graphml(tmp_path / "g.graphml").number_of_nodes() > 0
    ET.parse(tmp_path / "g.svg")
    json.loads((tmp_path / "g.json").read_bytes())
    assert run(log, *which, "--format", "svg").stdout.startswith("<svg")


def test_what_is_wrong_is_said(log: Path, tmp_path: Path) -> None:
    unknown = run(log, "--program", "three")
    assert unknown.exit_code == 1
    assert "no program 'three'; it has 2, as one, two" in unknown.output
    assert run(log, "--program", "one", "--model").exit_code == 2
    assert run(log, "--out", tmp_path / "no" / "folder.svg").exit_code == 1
    (tmp_path / "other").write_text("not a log\n")
    damaged = run(tmp_path / "other")
    assert damaged.exit_code == 1
    assert "line 1 is not a log header" in damaged.output
