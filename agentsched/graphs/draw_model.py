"""An AEG model as SVG: tools as boxes on an oval, transitions as curves as wide as they are probable.

The walk begins on the left and ends on the right; what often follows what stands side by side, and what
is often taken is dark. Tools beyond the ``MOST_NODES`` most used, or with less than ``LEAST_USED`` of the
calls, are drawn as one, and transitions below ``LEAST_SHOWN`` are left out (the exports have them all).
Self-contained, with the colours and variables of ``draw``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from agentsched.graphs.draw import STYLE, Point, add_text, shortened
from agentsched.graphs.model import ANSWER, BEGIN, END, OTHER, AegModel

MOST_NODES = 18
LEAST_USED = 0.01
LEAST_SHOWN = 0.05
LEAST_LABELLED = 0.3
BOX_W, BOX_H = 138, 46
ROUND_W, ROUND_H = 84, 26
MARGIN, HEADING = 26, 34
WIDEST = 7.0

MODEL_STYLE = """
.aeg .flow { fill: none; stroke: var(--aeg-edge, #7b8794); }
.aeg .flow:hover { stroke: var(--aeg-call-line, #2f6fc4); stroke-opacity: 1; }
.aeg .tip { fill: var(--aeg-edge, #7b8794); fill-opacity: 0.85; }
.aeg .share { font-size: 9.5px; text-anchor: middle; paint-order: stroke; stroke-width: 3;
  stroke: var(--aeg-paper, #ffffff); }
.aeg .round { fill: var(--aeg-call, #e3edfb); stroke: var(--aeg-call-line, #2f6fc4); stroke-width: 1.2; }
.aeg .middle { text-anchor: middle; font-weight: 600; }
.aeg .heading { font-size: 13px; font-weight: 600; }
"""


@dataclass(frozen=True, slots=True)
class _Node:
    """A box in the drawing; ``calls`` in ``members`` states."""

    name: str
    calls: int
    lines: tuple[str, ...]
    at: Point = (0.0, 0.0)

    @property
    def half(self) -> Point:
        return (ROUND_W / 2, ROUND_H / 2) if self.name in (BEGIN, END) else (BOX_W / 2, BOX_H / 2)


def model_to_svg(model: AegModel) -> str:
    """The drawing as one ``<svg>`` element, ready for a file or for a page."""
    flows = _flows(model)
    places, width, height = _layout(model, flows)
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "aeg",
        "viewBox": f"0 0 {width:g} {height:g}",
        "width": f"{width:g}",
        "height": f"{height:g}",
        "role": "img",
    }
    svg = ET.Element("svg", attributes)
    calls = sum(model.calls(state) for state in model.states)
    heading = f"What {model.programs:,} programs did in {calls:,} calls"
    add_text(svg, "title", {}, heading)
    ET.SubElement(svg, "style").text = STYLE + MODEL_STYLE
    add_text(svg, "text", {"class": "heading", "x": f"{MARGIN}", "y": "24"}, heading)
    left = Counter[str]()
    for (here, _), count in flows.items():
        left[here] += count
    most = max(flows.values(), default=1)
    centre = (width / 2, (height + HEADING) / 2)
    labels = []
    for (here, there), count in sorted(flows.items()):
        probability = count / left[here]
        if probability >= LEAST_SHOWN:
            spot = _flow(svg, places[here], places[there], centre, probability, math.sqrt(count / most))
            if probability >= LEAST_LABELLED:
                labels.append((spot, f"{probability:.0%}"))
    for node in places.values():
        _box(svg, node)
    for (x, y), text in labels:
        add_text(svg, "text", {"class": "share", "x": f"{x:.1f}", "y": f"{y:.1f}"}, text)
    return ET.tostring(svg, encoding="unicode")


def _flows(model: AegModel) -> Counter[tuple[str, str]]:
    """(state, next state) -> how often, with rarely used states taken together."""
    tools = [name for name in model.states if name not in (BEGIN, END, OTHER)]
    least = LEAST_USED * sum(model.calls(name) for name in model.states)
    shown = {BEGIN, END, *(name for name in tools[:MOST_NODES] if model.calls(name) >= least)}
    flows: Counter[tuple[str, str]] = Counter()
    for here, there, count in model.transitions():
        flows[here if here in shown else OTHER, there if there in shown else OTHER] += count
    return flows


def _layout(model: AegModel, flows: Counter[tuple[str, str]]) -> tuple[dict[str, _Node], float, float]:
    present = {name for pair in flows for name in pair}
    upper, lower = _sides(flows, sorted(present - {BEGIN, END}))
    across = max(2, len(upper), len(lower))
    radius_x, radius_y = 150 + 62 * across, 90 + 34 * across
    centre = (MARGIN + ROUND_W / 2 + radius_x, HEADING + MARGIN + BOX_H / 2 + radius_y)
    angles = {BEGIN: math.pi, END: 0.0}
    for side, sign in ((upper, -1), (lower, 1)):
        for number, name in enumerate(side, 1):
            angles[name] = math.pi + sign * -1 * math.pi * number / (len(side) + 1)
    places = {}
    for name in sorted(present):
        angle = angles[name]
        at = (centre[0] + radius_x * math.cos(angle), centre[1] - radius_y * math.sin(angle))
        places[name] = _node(model, name, present, at)
    return places, 2 * centre[0], centre[1] + radius_y + BOX_H / 2 + MARGIN


def _sides(flows: Counter[tuple[str, str]], names: list[str]) -> tuple[list[str], list[str]]:
    """Two chains from begin to end: each next tool is the one most bound to the one before it, and one
    chain ends with the one that most often comes last."""
    bound: Counter[frozenset[str]] = Counter()
    for (here, there), count in flows.items():
        bound[frozenset((here, there))] += count
    last = [max(names, key=lambda name: (flows[name, END], name))] if names else []
    chain, rest = [BEGIN], [name for name in names if name not in last]
    while rest:
        nearest = max(rest, key=lambda name: (bound[frozenset((chain[-1], name))], name))
        chain.append(nearest)
        rest.remove(nearest)
    half = len(names) // 2
    return chain[half + 1 :][::-1], chain[1 : half + 1] + last


def _node(model: AegModel, name: str, shown: set[str], at: Point) -> _Node:
    if name in (BEGIN, END):
        return _Node(name, 0, (name.strip("()"),), at)
    if name == OTHER:
        members = [state for state in model.states if state == OTHER or state not in shown]
        calls = sum(model.calls(state) for state in members)
        return _Node(name, calls, ("other tools", f"{calls:,} calls of {len(members)} kinds"), at)
    calls, tokens = model.calls(name), model.tokens(name)
    lines = [
        "answer, no tool" if name == ANSWER else name,
        f"{calls:,} calls, gap {_time(model.gap_median_s(name))}",
    ]
    if tokens is not None:
        lines.append(f"+{tokens.new_mean:,.0f} in, {tokens.output_mean:,.0f} out")
    return _Node(name, calls, tuple(lines), at)


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _flow(
    svg: ET.Element, tail: _Node, head: _Node, centre: Point, probability: float, traffic: float
) -> Point:
    """Draws one transition, the darker the more ``traffic`` (0 to 1); where its label may stand."""
    width = max(0.8, WIDEST * probability)
    if tail.name == head.name:
        path, tip, spot = _loop(tail, centre)
    else:
        path, tip, spot = _curve(tail, head, centre)
    group = ET.SubElement(svg, "g", {"opacity": f"{0.3 + 0.6 * traffic:.2f}"})
    add_text(group, "title", {}, f"{tail.name} to {head.name}: {probability:.1%}")
    ET.SubElement(group, "path", {"class": "flow", "d": path, "stroke-width": f"{width:.1f}"})
    (x, y), angle = tip
    size = 5 + width / 2
    wings = [(x - size * math.cos(angle + turn), y - size * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in [(x, y), *wings])
    ET.SubElement(group, "polygon", {"class": "tip", "points": points})
    return spot


def _curve(tail: _Node, head: _Node, centre: Point) -> tuple[str, tuple[Point, float], Point]:
    """Bent towards the centre and to its own right, so that the way back is another curve."""
    (x1, y1), (x2, y2) = tail.at, head.at
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    length = math.hypot(x2 - x1, y2 - y1) or 1.0
    aside = 14 + 0.05 * length
    bend = (
        middle[0] + 0.35 * (centre[0] - middle[0]) - aside * (y2 - y1) / length,
        middle[1] + 0.35 * (centre[1] - middle[1]) + aside * (x2 - x1) / length,
    )
    start, tip = _border(tail, bend), _border(head, bend)
    angle = math.atan2(tip[1] - bend[1], tip[0] - bend[0])
    path = f"M{start[0]:.1f},{start[1]:.1f} Q{bend[0]:.1f},{bend[1]:.1f} {tip[0]:.1f},{tip[1]:.1f}"
    # nearer to its begin, where labels of different ways out are apart
    t = 0.3
    weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
    spot = tuple(
        weights[0] * start[axis] + weights[1] * bend[axis] + weights[2] * tip[axis] for axis in (0, 1)
    )
    return path, (tip, angle), (spot[0], spot[1] + 3)


def _loop(node: _Node, centre: Point) -> tuple[str, tuple[Point, float], Point]:
    """On the side away from the centre."""
    x, y = node.at
    up = -1 if y <= centre[1] else 1
    edge = y + up * node.half[1]
    far = edge + up * 22
    path = f"M{x + 26:.1f},{edge:.1f} C{x + 34:.1f},{far:.1f} {x - 34:.1f},{far:.1f} {x - 26:.1f},{edge:.1f}"
    return path, ((x - 26, edge), math.pi / 2 * -up), (x, edge + up * (14 if up < 0 else 20))


def _border(node: _Node, toward: Point) -> Point:
    """Where the line from the node's middle to a point leaves its box."""
    dx, dy = toward[0] - node.at[0], toward[1] - node.at[1]
    scale = min(
        node.half[0] / abs(dx) if dx else math.inf,
        node.half[1] / abs(dy) if dy else math.inf,
    )
    scale = min(scale, 1.0)
    return node.at[0] + dx * scale, node.at[1] + dy * scale


def _box(svg: ET.Element, node: _Node) -> None:
    group = ET.SubElement(svg, "g", {"class": "state"})
    add_text(group, "title", {}, ", ".join((node.name, *node.lines[1:])))
    (x, y), (half_w, half_h) = node.at, node.half
    end = node.name in (BEGIN, END)
    box = {
        "class": "round" if end else f"box {'call' if node.name == ANSWER else 'tool'}",
        "x": f"{x - half_w:.1f}",
        "y": f"{y - half_h:.1f}",
        "width": f"{2 * half_w:g}",
        "height": f"{2 * half_h:g}",
        "rx": f"{half_h if end else 6:g}",
    }
    ET.SubElement(group, "rect", box)
    if end:
        add_text(group, "text", {"class": "middle", "x": f"{x:.1f}", "y": f"{y + 4:.1f}"}, node.lines[0])
        return
    for number, line in enumerate(node.lines):
        place = {"x": f"{x - half_w + 8:.1f}", "y": f"{y - half_h + 14 + 13 * number:.1f}"}
        if number == 0:
            place["class"] = "name"
        add_text(group, "text", place, shortened(line, 22))
