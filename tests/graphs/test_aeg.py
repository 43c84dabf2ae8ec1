"""Capture of execution graphs: shape, numbers, odd orders, JSON and the drawing."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core import events as ev
from agentsched.graphs.aeg import MAX_WARNINGS, Aeg, CallNode, Capture
from agentsched.graphs.draw import COLUMNS, to_svg
from agentsched.graphs.export import AegFormatError, from_json, to_json

Timed = tuple[float, ev.AnyEvent]


def one_call(
    call: str, at: float, *, answers: tuple[str, ...] = (), asks: tuple[str, ...] = (), program: str = "p"
) -> list[Timed]:
    refs = tuple(ev.ToolCallRef(tool_call=name, tool="bash") for name in asks)
    return [
        (
            at,
            ev.CallArrived(
                call=call, program=program, prompt_tokens=100, max_output_tokens=9, answers=answers
            ),
        ),
        (at + 1, ev.CallStarted(call=call, cached_tokens=40)),
        (at + 2, ev.FirstToken(call=call)),
        (
            at + 3,
            ev.CallFinished(
                call=call,
                prompt_tokens=100,
                cached_tokens=40,
                output_tokens=7,
                recomputed_tokens=5,
                tool_calls=refs,
            ),
        ),
    ]


def one_tool(tool_call: str, at: float, command: str = "pytest") -> list[Timed]:
    return [
        (at, ev.ToolStarted(tool_call=tool_call, program="p", tool="bash", command=command)),
        (at + 1, ev.ToolProgressed(tool_call=tool_call, program="p", cpu_s=0.5, memory_bytes=2000)),
        (
            at + 2,
            ev.ToolFinished(
                tool_call=tool_call,
                program="p",
                exit_status=1,
                wall_s=2.0,
                cpu_s=0.75,
                peak_memory_bytes=1500,
            ),
        ),
    ]


def captured(*parts: list[Timed]) -> Aeg:
    capture = Capture()
    for now, event in (entry for part in parts for entry in part):
        capture.feed(now, event)
    return capture.programs["p"]


def typical() -> Aeg:
    return captured(
        [(0.0, ev.ProgramOpened(program="p", tenant="acme"))],
        one_call("c1", 1, asks=("t1", "t2")),
        one_tool("t1", 4),
        one_tool("t2", 4, command="grep"),
        one_call("c2", 7, answers=("t1", "t2")),
        one_call("c3", 11),
        [(15.0, ev.ProgramClosed(program="p"))],
    )


def test_a_program_becomes_a_graph_of_calls_and_tools() -> None:
    aeg = typical()
    assert sorted(aeg.edges()) == [
        ("call:c1", "tool:t1", "asks"),
        ("call:c1", "tool:t2", "asks"),
        ("call:c2", "call:c3", "continues"),
        ("tool:t1", "call:c2", "answers"),
        ("tool:t2", "call:c2", "answers"),
    ]
    assert aeg.warnings == []
    assert (aeg.tenant, aeg.opened_s, aeg.closed_s) == ("acme", 0.0, 15.0)
    first = aeg.calls[0]
    assert (first.arrived_s, first.started_s, first.first_token_s, first.finished_s) == (1, 2, 3, 4)
    assert (first.prompt_tokens, first.cached_tokens, first.output_tokens, first.recomputed_tokens) == (
        100,
        40,
        7,
        5,
    )
    tool = aeg.tools[0]
    assert (tool.label, tool.started_s, tool.finished_s, tool.exit_status) == ("pytest", 4, 6, 1)
    assert (tool.cpu_s, tool.peak_memory_bytes) == (0.75, 1500)


def test_a_history_of_old_results_joins_each_tool_once() -> None:
    aeg = captured(
        one_call("c1", 0, asks=("t1",)),
        one_call("c2", 5, answers=("t1",), asks=("t2",)),
        one_call("c3", 9, answers=("t1", "t2")),
    )
    assert ("tool:t1", "call:c3", "answers") not in set(aeg.edges())
    assert ("tool:t2", "call:c3", "answers") in set(aeg.edges())


def test_a_retry_after_an_aborted_call_carries_the_result_again() -> None:
    aborted: list[Timed] = [
        *one_call("c2", 5, answers=("t1",))[:2],
        (6.5, ev.CallAborted(call="c2", reason="client gone")),
    ]
    aeg = captured(one_call("c1", 0, asks=("t1",)), aborted, one_call("c3", 8, answers=("t1",)))
    assert ("tool:t1", "call:c3", "answers") in set(aeg.edges())
    assert aeg.calls[1].abort_reason == "client gone"
    assert aeg.calls[1].ended_s == 6.5


def test_a_tool_that_reports_before_its_call_ended_is_joined() -> None:
    call = one_call("c1", 0, asks=("t1",))
    aeg = captured(call[:3], one_tool("t1", 2.5)[:1], call[3:])
    assert list(aeg.edges()) == [("call:c1", "tool:t1", "asks")]
    assert aeg.warnings == []


def test_a_preempted_call_keeps_its_first_start() -> None:
    call = one_call("c1", 0)
    aeg = captured(call[:2], [(1.5, ev.CallStarted(call="c1", cached_tokens=64))], call[2:])
    assert (aeg.calls[0].started_s, aeg.calls[0].restarts) == (1.0, 1)


def test_what_does_not_fit_is_a_warning() -> None:
    capture = Capture()
    capture.feed(0.0, ev.FirstToken(call="ghost"))
    assert "ghost" in capture.warnings[0]
    aeg = captured(
        one_call("c1", 0, answers=("nobody",)),
        one_call("c1", 9),
        [(20.0, ev.ProgramClosed(program="p"))],
        one_call("c2", 21),
        [
            (
                30.0,
                ev.ToolFinished(
                    tool_call="t", program="p", exit_status=0, wall_s=4.0, cpu_s=1.0, peak_memory_bytes=1
                ),
            )
        ],
    )
    assert len(aeg.calls) == 2
    assert aeg.tools[0].started_s == 26.0
    text = "\n".join(aeg.warnings)
    for part in (
        "nobody",
        "arrived twice",
        "after its end",
        "after the program was closed",
        "without a start",
    ):
        assert part in text


def test_a_claim_that_would_close_a_circle_is_left_out() -> None:
    aeg = captured(one_tool("t1", 0), one_call("c1", 3, answers=("t1",), asks=("t1",)))
    assert nx.is_directed_acyclic_graph(aeg.graph)
    assert "circle" in aeg.warnings[0]


names = st.sampled_from(["a", "b", "c"])
some_events = st.one_of(
    st.builds(ev.ProgramOpened, program=names),
    st.builds(ev.ProgramClosed, program=names),
    st.builds(
        ev.CallArrived,
        call=names,
        program=names,
        prompt_tokens=st.integers(0, 9),
        max_output_tokens=st.just(1),
        answers=st.lists(names, max_size=2).map(tuple),
    ),
    st.builds(ev.CallStarted, call=names, cached_tokens=st.just(0)),
    st.builds(ev.FirstToken, call=names),
    st.builds(
        ev.CallFinished,
        call=names,
        prompt_tokens=st.integers(0, 9),
        cached_tokens=st.just(0),
        output_tokens=st.just(1),
        tool_calls=st.lists(st.builds(ev.ToolCallRef, tool_call=names, tool=names), max_size=2).map(tuple),
    ),
    st.builds(ev.CallAborted, call=names, reason=st.just("gone")),
    st.builds(ev.ToolStarted, tool_call=names, program=names, tool=names),
    st.builds(ev.ToolProgressed, tool_call=names, program=names, cpu_s=st.just(1.0), memory_bytes=st.just(1)),
    st.builds(
        ev.ToolFinished,
        tool_call=names,
        program=names,
        exit_status=st.just(0),
        wall_s=st.just(1.0),
        cpu_s=st.just(1.0),
        peak_memory_bytes=st.just(1),
    ),
    st.builds(ev.EngineLost, engine=names),
    st.just(ev.Woken()),
)


@given(st.lists(some_events, max_size=60))
def test_no_order_of_legal_events_breaks_capture_export_or_drawing(events: list[ev.AnyEvent]) -> None:
    capture = Capture()
    for now, event in enumerate(events):
        capture.feed(float(now), event)
    for aeg in capture.programs.values():
        assert nx.is_directed_acyclic_graph(aeg.graph)
        assert len(aeg.warnings) <= MAX_WARNINGS
        assert same(from_json(to_json(aeg)), aeg)
        ET.fromstring(to_svg(aeg))


def same(left: Aeg, right: Aeg) -> bool:
    return (
        (left.program, left.tenant, left.opened_s, left.closed_s, left.warnings)
        == (right.program, right.tenant, right.opened_s, right.closed_s, right.warnings)
        and left.calls == right.calls
        and left.tools == right.tools
        and sorted(left.edges()) == sorted(right.edges())
    )


def test_the_export_is_read_by_networkx_itself() -> None:
    document = json.loads(to_json(typical()))
    graph = nx.node_link_graph(document["graph"], edges="edges")
    assert document["version"] == 1
    assert graph.nodes["call:c1"]["data"]["prompt_tokens"] == 100
    assert graph.edges["call:c1", "tool:t1"]["kind"] == "asks"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema":"agentsched.aeg"', '"schema":"other"', "schema"),
        ('"version":1', '"version":99', "version is 99"),
        ('"kind":"asks"', '"kind":"likes"', "not legal"),
        ('"id":"call:c1"', '"id":"call:x"', "does not match"),
        ('"opened_s":0.0', '"opened_s":"soon"', "opened_s"),
    ],
)
def test_a_damaged_document_is_refused_by_name(old: str, new: str, message: str) -> None:
    text = to_json(typical()).decode()
    assert old in text
    with pytest.raises(AegFormatError, match=message):
        from_json(text.replace(old, new, 1))


def test_forgetting_a_program_frees_its_calls() -> None:
    capture = Capture()
    for now, event in one_call("c1", 0):
        capture.feed(now, event)
    assert capture.forget("p") is not None
    assert capture.forget("p") is None
    capture.feed(9.0, ev.FirstToken(call="c1"))
    assert len(capture.warnings) == 1


def test_the_drawing_shows_every_node_once_and_escapes_names() -> None:
    hostile = "<script>alert(1)</script>&\x00\ud800"
    parts = [one_call(f"c{i}", 10 * i, asks=(f"t{i}",), answers=(f"t{i - 1}",)) for i in range(COLUMNS + 3)]
    aeg = captured(*parts, one_tool("t0", 4, command=hostile))
    svg = to_svg(aeg)
    assert "<script>" not in svg
    assert "\x00" not in svg
    svg.encode()
    root = ET.fromstring(svg)
    boxes = root.findall(".//{http://www.w3.org/2000/svg}g")
    assert len(boxes) == len(aeg.calls) + len(aeg.tools)
    paths = list(root.iter("{http://www.w3.org/2000/svg}path"))
    assert len(paths) == aeg.graph.number_of_edges()


def test_boxes_do_not_overlap() -> None:
    parts = [one_call(f"c{i}", 10 * i, asks=(f"t{i}", f"u{i}")) for i in range(COLUMNS * 2 + 1)]
    root = ET.fromstring(to_svg(captured(*parts)))
    boxes = [
        tuple(float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
        for rect in root.iter("{http://www.w3.org/2000/svg}rect")
        if "box" in (rect.get("class") or "")
    ]
    assert len(boxes) == (COLUMNS * 2 + 1) * 3
    for i, (x1, y1, w1, h1) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:i]:
            assert x1 + w1 <= x2 or x2 + w2 <= x1 or y1 + h1 <= y2 or y2 + h2 <= y1


def test_call_nodes_know_their_end() -> None:
    node = CallNode(call="c", index=0, arrived_s=0.0, prompt_tokens=1)
    assert node.ended_s is None
