"""AEG models: what is learned from programs, and how it is asked, exported and drawn."""

from __future__ import annotations

import io
import json
import random
import time
from xml.etree import ElementTree as ET

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core import events as ev
from agentsched.graphs.aeg import Aeg, Capture
from agentsched.graphs.draw_model import MOST_NODES, model_to_svg
from agentsched.graphs.export import model_to_json, to_graphml
from agentsched.graphs.model import ANSWER, BEGIN, END, OTHER, AegModel, Step, steps_of

SVG = "{http://www.w3.org/2000/svg}"
LAWS = {
    BEGIN: {"read": 0.7, "bash:grep": 0.3},
    "read": {"edit": 0.6, "read": 0.4},
    "bash:grep": {"read": 1.0},
    "edit": {"bash:pytest": 0.8, "edit": 0.2},
    "bash:pytest": {"edit": 0.5, ANSWER: 0.3, "read": 0.2},
    ANSWER: {END: 1.0},
}
GAPS_S = {"read": 0.05, "edit": 0.1, "bash:grep": 0.2, "bash:pytest": 4.0, ANSWER: 0.0}


def walk(rng: random.Random) -> list[Step]:
    """A program that follows ``LAWS``; each call gains 500 tokens and puts out 100."""
    steps: list[Step] = []
    here, prompt = BEGIN, 8_000
    while True:
        here = rng.choices(list(LAWS[here]), list(LAWS[here].values()))[0]
        if here == END:
            return steps
        gap_s = None if here == ANSWER else GAPS_S[here] * rng.uniform(0.5, 1.5)
        new = 8_000 if not steps else 500
        steps.append(Step(tool=here, prompt_tokens=prompt, new_tokens=new, output_tokens=100, gap_s=gap_s))
        prompt += 600


def learned(programs: int, seed: int = 1) -> AegModel:
    model, rng = AegModel(), random.Random(seed)
    for _ in range(programs):
        model.learn(walk(rng))
    return model


def test_transitions_are_those_of_the_programs() -> None:
    model = learned(400)
    for here, chances in LAWS.items():
        for there, chance in chances.items():
            assert model.probability(here, there) == pytest.approx(chance, abs=0.06)
    assert model.following("bash:pytest")[0][0] == "edit"
    assert model.following("nothing like it") == ()
    assert model.programs == 400


def test_probabilities_sum_to_one_and_unseen_ones_are_small() -> None:
    model = learned(50)
    for here in (BEGIN, "read", "never seen"):
        assert sum(model.probability(here, there) for there in [*LAWS, END]) == pytest.approx(1)
    assert 0 < model.probability("read", END) < 0.01
    assert AegModel().probability(BEGIN, END) == 0


def test_gaps_and_tokens_are_known_by_state() -> None:
    model = learned(100)
    assert model.gap_median_s("bash:pytest") == pytest.approx(4, rel=0.2)
    assert model.gap_median_s("read") == pytest.approx(0.05, rel=0.2)
    tokens = model.tokens("edit")
    assert tokens is not None
    assert (tokens.new_mean, tokens.new_p90, tokens.output_mean) == (500, 500, 100)
    assert model.tokens("never seen") is None


def test_the_last_tool_tells_about_calls_left() -> None:
    """After a test run programs may answer and end; after a read, several calls are to come."""
    model, rng = learned(300), random.Random(9)
    left: dict[str, list[int]] = {}
    for _ in range(300):
        steps = walk(rng)
        for done, step in enumerate(steps[:-1], 1):
            if done == 8:
                left.setdefault(step.tool, []).append(len(steps) - done)
    after_test, after_read = (model.calls_left(8, 8_000, tool) for tool in ("bash:pytest", "read"))
    assert after_test < after_read
    for tool, expected in (("bash:pytest", after_test), ("read", after_read)):
        assert expected == pytest.approx(sum(left[tool]) / len(left[tool]), rel=0.25)
    assert model.calls_left(8, 8_000) == model.contexts.expected_calls_left(8, 8_000)


def test_a_program_that_has_not_ended_teaches_no_end() -> None:
    model = AegModel()
    model.learn([Step(tool="read", prompt_tokens=9, new_tokens=9, output_tokens=1)] * 3, ended=False)
    assert model.probability("read", END) == 0
    assert model.programs == 1
    model.learn([])
    assert model.programs == 1


def test_names_from_outside_cannot_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AegModel, "MAX_STATES", 50)
    model = AegModel()
    for number in range(200):
        model.learn([Step(tool=f"tool-{number}", prompt_tokens=9, new_tokens=9, output_tokens=1)])
    assert len(model.states) <= 53  # begin and other beside them
    assert model.calls(OTHER) == 150 + 1


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_garbage_is_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match="gap_s must be"):
        Step(tool="x", prompt_tokens=1, new_tokens=1, output_tokens=1, gap_s=bad)
    with pytest.raises(ValueError, match="new_tokens must be"):
        Step(tool="x", prompt_tokens=1, new_tokens=bad, output_tokens=1)  # type: ignore[arg-type]


def captured() -> Aeg:
    capture = Capture()
    refs = tuple(ev.ToolCallRef(tool_call=name, tool="bash") for name in ("t1", "t2"))
    for now, event in (
        (0.0, ev.CallArrived(call="c1", program="p", prompt_tokens=100, max_output_tokens=9)),
        (
            1.0,
            ev.CallFinished(call="c1", prompt_tokens=100, cached_tokens=0, output_tokens=10, tool_calls=refs),
        ),
        (1.0, ev.ToolStarted(tool_call="t1", program="p", tool="bash", command="pytest")),
        (1.0, ev.ToolStarted(tool_call="t2", program="p", tool="bash", command="ls")),
        (1.5, finished("t2", 0.5)),
        (4.0, finished("t1", 3.0)),
        (
            4.5,
            ev.CallArrived(
                call="c2", program="p", prompt_tokens=160, max_output_tokens=9, answers=("t1", "t2")
            ),
        ),
        (6.0, ev.CallFinished(call="c2", prompt_tokens=160, cached_tokens=0, output_tokens=20)),
        (7.0, ev.CallArrived(call="c3", program="p", prompt_tokens=170, max_output_tokens=9)),
        (7.5, ev.CallAborted(call="c3", reason="gone")),
        (8.0, ev.ProgramClosed(program="p")),
    ):
        capture.feed(now, event)
    return capture.programs["p"]


def finished(tool_call: str, wall_s: float) -> ev.ToolFinished:
    return ev.ToolFinished(
        tool_call=tool_call, program="p", exit_status=0, wall_s=wall_s, cpu_s=0.1, peak_memory_bytes=1
    )


def test_steps_are_read_off_a_captured_graph() -> None:
    assert steps_of(captured()) == [
        Step(tool="bash:pytest", prompt_tokens=100, new_tokens=100, output_tokens=10, gap_s=3.5),
        Step(tool=ANSWER, prompt_tokens=160, new_tokens=50, output_tokens=20, gap_s=None),
    ]


def test_a_model_is_exported_as_json_and_graphml_alike() -> None:
    model = learned(30)
    document = json.loads(model_to_json(model))
    assert (document["schema"], document["version"]) == ("agentsched.aeg-model", 1)
    from_json = nx.node_link_graph(document["graph"], edges="edges")
    from_graphml = nx.read_graphml(io.BytesIO(to_graphml(model)))
    for graph in (from_json, from_graphml):
        assert set(graph) == {*LAWS, END}
        assert graph.nodes["edit"]["new_mean"] == 500.0
        assert graph.edges["edit", "bash:pytest"]["probability"] == model.probability("edit", "bash:pytest")
    assert isinstance(from_graphml.nodes["edit"]["new_p50"], float)
    assert isinstance(from_graphml.edges["edit", "bash:pytest"]["count"], int)


def test_a_graph_is_exported_as_graphml_with_types() -> None:
    graph = nx.read_graphml(io.BytesIO(to_graphml(captured())))
    call, tool = graph.nodes["call:c1"], graph.nodes["tool:t1"]
    assert (call["kind"], call["prompt_tokens"], call["finished_s"]) == ("call", 100, 1.0)
    assert (tool["kind"], tool["command"], tool["cpu_s"], tool["exit_status"]) == ("tool", "pytest", 0.1, 0)
    assert "started_s" not in call
    assert graph.edges["call:c1", "tool:t1"]["kind"] == "asks"
    assert graph.graph["program"] == "p"


hostile = st.text(max_size=8) | st.sampled_from(["<b>", "\x00", "\x01", "\ud800", BEGIN, END, OTHER, ""])


@given(st.lists(st.lists(hostile, max_size=6), max_size=6))
def test_no_names_break_exports_or_drawing(programs: list[list[str]]) -> None:
    model = AegModel()
    for number, names in enumerate(programs):
        steps = [Step(tool=name, prompt_tokens=9, new_tokens=9, output_tokens=1, gap_s=1.0) for name in names]
        model.learn(steps, ended=number % 2 == 0)
    graph = nx.read_graphml(io.BytesIO(to_graphml(model)))
    assert graph.number_of_edges() == sum(1 for _ in model.transitions())
    json.loads(model_to_json(model))
    ET.fromstring(model_to_svg(model))


def test_the_drawing_has_a_box_a_state_and_widths_by_probability() -> None:
    root = ET.fromstring(model_to_svg(learned(100)))
    names = {text.text for text in root.iter(f"{SVG}text")}
    assert {"begin", "end", "read", "edit", "bash:grep", "bash:pytest", "answer, no tool"} <= names
    widths = {
        title.text.split(":  ")[0].rsplit(":", 1)[0]: float(path.get("stroke-width", "nan"))
        for group in root.iter(f"{SVG}g")
        if (path := group.find(f"{SVG}path")) is not None
        and (title := group.find(f"{SVG}title")) is not None
        and title.text
    }
    assert widths["edit to bash:pytest"] > widths["bash:pytest to edit"] > widths["edit to edit"]


def test_many_tools_are_drawn_as_few_boxes_that_do_not_overlap() -> None:
    model, rng = AegModel(), random.Random(4)
    for _ in range(100):
        tools = [f"tool-{int(rng.paretovariate(0.6)) % 60}" for _ in range(20)]
        steps = [Step(tool=tool, prompt_tokens=9, new_tokens=9, output_tokens=1) for tool in tools]
        model.learn(steps)
    root = ET.fromstring(model_to_svg(model))
    boxes = [
        tuple(float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
        for rect in root.iter(f"{SVG}rect")
    ]
    assert 5 < len(boxes) <= MOST_NODES + 3
    width, height = float(root.get("width", "nan")), float(root.get("height", "nan"))
    for i, (x1, y1, w1, h1) in enumerate(boxes):
        assert x1 >= 0 <= y1
        assert x1 + w1 <= width
        assert y1 + h1 <= height
        for x2, y2, w2, h2 in boxes[:i]:
            assert x1 + w1 <= x2 or x2 + w2 <= x1 or y1 + h1 <= y2 or y2 + h2 <= y1


def test_queries_walk_no_graph() -> None:
    model = learned(400)
    started = time.perf_counter()
    for i in range(10_000):
        model.following("edit")
        model.calls_left(i % 30, 8_000, "edit")
        model.gap_median_s("bash:pytest")
    assert time.perf_counter() - started < 5.0
