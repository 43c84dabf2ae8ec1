"""One program's AEG as SVG: calls in the upper lane, the tool calls they asked for below them.

Calls run from left to right in order of arrival, in rows like lines of text, so that a long program
fits a page. Each box carries its numbers, and a bar that splits its time (a call: waited, prefill,
decode; a tool call: busy on a CPU or not). The drawing is self-contained and adapts to dark pages:
colours are CSS variables (``--aeg-*``) with defaults. Text comes from programs and is escaped.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from agentsched.graphs.aeg import Aeg, CallNode, Node, ToolNode
from agentsched.graphs.export import legible

COLUMNS = 7
BOX_W, CALL_H, TOOL_H = 152, 68, 54
GAP_X, LANE_GAP, TOOL_GAP, ROW_GAP, MARGIN = 28, 32, 10, 46, 18
MOST_CHARS = 26

STYLE = """
.aeg { font: 10.5px system-ui, sans-serif; }
.aeg text { fill: var(--aeg-ink, #1c2430); }
.aeg .name { font-weight: 600; }
.aeg .box { stroke-width: 1.2; }
.aeg .call { fill: var(--aeg-call, #e3edfb); stroke: var(--aeg-call-line, #2f6fc4); }
.aeg .tool { fill: var(--aeg-tool, #fdf0dc); stroke: var(--aeg-tool-line, #b87514); }
.aeg .bad { stroke: var(--aeg-bad, #c4302b); stroke-width: 2; }
.aeg .edge { fill: none; stroke: var(--aeg-edge, #7b8794); stroke-width: 1.3; }
.aeg .continues { stroke-dasharray: 4 3; }
.aeg .head { fill: var(--aeg-edge, #7b8794); }
.aeg .wait { fill: #d1495b; }
.aeg .prefill { fill: #2f6fc4; }
.aeg .decode { fill: #66b2ff; }
.aeg .cpu { fill: #b87514; }
.aeg .idle { fill: #e8c995; }
"""

Point = tuple[float, float]
Places = dict[str, tuple[Point, Node]]


def to_svg(aeg: Aeg) -> str:
    """The drawing as one ``<svg>`` element, ready for a file or for a page."""
    places, width, height = _layout(aeg)
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "aeg",
            "viewBox": f"0 0 {width:g} {height:g}",
            "width": f"{width:g}",
            "height": f"{height:g}",
            "role": "img",
        },
    )
    add_text(svg, "title", {}, f"Execution graph of program {aeg.program}")
    ET.SubElement(svg, "style").text = STYLE
    for tail, head, kind in aeg.edges():
        _edge(svg, places[tail], places[head], kind)
    for corner, node in places.values():
        if isinstance(node, CallNode):
            _call(svg, corner, node)
        else:
            _tool(svg, corner, node)
    return ET.tostring(svg, encoding="unicode")


def _layout(aeg: Aeg) -> tuple[Places, float, float]:
    columns: list[tuple[CallNode | None, list[ToolNode]]] = []
    askers: dict[str, int] = {}
    for index, call in enumerate(aeg.calls):
        columns.append((call, []))
        for tool_id in aeg.graph.successors(call.node_id):
            askers.setdefault(tool_id, index)
    for tool in aeg.tools:
        if tool.node_id not in askers and not columns:
            columns.append((None, []))
        columns[askers.get(tool.node_id, 0)][1].append(tool)
    places: Places = {}
    top = float(MARGIN)
    for first in range(0, len(columns), COLUMNS):
        row = columns[first : first + COLUMNS]
        for position, (asker, tools) in enumerate(row):
            left = MARGIN + position * (BOX_W + GAP_X)
            if asker is not None:
                places[asker.node_id] = ((left, top), asker)
            for depth, tool in enumerate(tools):
                below = top + CALL_H + LANE_GAP + depth * (TOOL_H + TOOL_GAP)
                places[tool.node_id] = ((left, below), tool)
        deepest = max(len(tools) for _, tools in row)
        top += CALL_H + (LANE_GAP + deepest * (TOOL_H + TOOL_GAP) if deepest else 0) + ROW_GAP
    used = max(1, min(COLUMNS, len(columns)))
    return places, 2 * MARGIN + used * BOX_W + (used - 1) * GAP_X, max(top - ROW_GAP + MARGIN, 2 * MARGIN)


def _edge(svg: ET.Element, tail: tuple[Point, Node], head: tuple[Point, Node], kind: str) -> None:
    (corner, source), (target, _) = tail, head
    if kind == "asks":
        path, tip, direction = _down(corner, target)
    else:
        height = CALL_H if isinstance(source, CallNode) else TOOL_H
        path, tip, direction = _onward((corner[0] + BOX_W, corner[1] + height / 2), target)
    ET.SubElement(svg, "path", {"class": f"edge {kind}", "d": path})
    _arrow_head(svg, tip, direction)


def _down(call: Point, tool: Point) -> tuple[str, Point, str]:
    (x, top), (_, below) = call, tool
    start = top + CALL_H
    if below - start <= LANE_GAP:
        tip = (x + BOX_W / 2, below)
        return f"M{tip[0]:g},{start:g} V{below - 5:g}", tip, "down"
    # Past the tool calls above it, on their left.
    side, tip = x - GAP_X / 3, (x, below + TOOL_H / 2)
    return f"M{x + 12:g},{start:g} V{start + 8:g} H{side:g} V{tip[1]:g} H{x - 5:g}", tip, "right"


def _onward(start: Point, call: Point) -> tuple[str, Point, str]:
    (x1, y1), (x2, top) = start, call
    tip = (x2, top + CALL_H / 2)
    if x2 > x1:
        middle = (x1 + x2) / 2
        path = f"M{x1:g},{y1:g} C{middle:g},{y1:g} {middle:g},{tip[1]:g} {x2 - 5:g},{tip[1]:g}"
    else:
        # On to the next row: round the end of this one, back through the space between rows.
        turn, between = x1 + GAP_X / 3, top - ROW_GAP / 2
        path = f"M{x1:g},{y1:g} H{turn:g} V{between:g} H{x2 - GAP_X / 3:g} V{tip[1]:g} H{x2 - 5:g}"
    return path, tip, "right"


def _arrow_head(svg: ET.Element, tip: Point, direction: str) -> None:
    x, y = tip
    wings = [(x - 4, y - 7), (x + 4, y - 7)] if direction == "down" else [(x - 7, y - 4), (x - 7, y + 4)]
    points = " ".join(f"{px:g},{py:g}" for px, py in [tip, *wings])
    ET.SubElement(svg, "polygon", {"class": "head", "points": points})


def _call(svg: ET.Element, corner: Point, node: CallNode) -> None:
    group = ET.SubElement(svg, "g")
    end = node.ended_s
    lines = [
        f"call {node.index + 1}" + (" (aborted)" if node.aborted_s is not None else ""),
        f"{node.prompt_tokens:,} in, {node.output_tokens:,} out",
        f"{node.cached_tokens:,} cached",
        _spent(node.arrived_s, end)
        + (f", {node.recomputed_tokens:,} recomputed" if node.recomputed_tokens else ""),
    ]
    title = f"call {node.call}: {', '.join(lines[1:])}"
    _box(group, corner, CALL_H, "call" + (" bad" if node.aborted_s is not None else ""), lines, title)
    if end is not None:
        started = end if node.started_s is None else node.started_s
        first = end if node.first_token_s is None else node.first_token_s
        parts = {
            "wait": started - node.arrived_s,
            "prefill": first - started,
            "decode": end - first,
        }
        _bar(group, corner, CALL_H, parts)


def _tool(svg: ET.Element, corner: Point, node: ToolNode) -> None:
    group = ET.SubElement(svg, "g")
    failed = bool(node.exit_status)
    status = "running" if node.exit_status is None else f"exit {node.exit_status}"
    lines = [
        node.label,
        f"{_spent(node.started_s, node.finished_s)}, {status}",
        f"{node.cpu_s:.2f} CPU s, {node.peak_memory_bytes / 1e6:.0f} MB",
    ]
    title = f"{node.tool} {node.command} ({node.tool_call}): {', '.join(lines[1:])}"
    _box(group, corner, TOOL_H, "tool" + (" bad" if failed else ""), lines, title)
    if node.started_s is not None and node.finished_s is not None:
        wall_s = node.finished_s - node.started_s
        busy_s = min(node.cpu_s, wall_s)
        _bar(group, corner, TOOL_H, {"cpu": busy_s, "idle": wall_s - busy_s})


def _spent(start: float | None, end: float | None) -> str:
    if start is None:
        return "not started"
    return "not ended" if end is None else f"{end - start:.2f} s"


def _box(group: ET.Element, corner: Point, height: int, style: str, lines: list[str], title: str) -> None:
    x, y = corner
    add_text(group, "title", {}, title)
    box = {"x": f"{x:g}", "y": f"{y:g}", "width": str(BOX_W), "height": str(height), "rx": "6"}
    ET.SubElement(group, "rect", {"class": f"box {style}", **box})
    for number, line in enumerate(lines):
        place = {"x": f"{x + 9:g}", "y": f"{y + 15 + 13.5 * number:g}"}
        if number == 0:
            place["class"] = "name"
        add_text(group, "text", place, shortened(line, MOST_CHARS - 6 if number == 0 else MOST_CHARS))


def _bar(group: ET.Element, corner: Point, height: int, parts: dict[str, float]) -> None:
    total = sum(max(0.0, seconds) for seconds in parts.values())
    if total <= 0:
        return
    x, y, width = corner[0] + 9, corner[1] + height - 7, BOX_W - 18
    for style, seconds in parts.items():
        share = max(0.0, seconds) / total * width
        if share > 0:
            place = {"x": f"{x:.1f}", "y": f"{y:g}", "width": f"{share:.1f}", "height": "3"}
            ET.SubElement(group, "rect", {"class": style, **place})
        x += share


def add_text(parent: ET.Element, tag: str, attributes: dict[str, str], text: str) -> None:
    """An element with text, as XML can carry it."""
    ET.SubElement(parent, tag, attributes).text = legible(text)


def shortened(line: str, most: int) -> str:
    """``line`` in at most ``most`` characters."""
    return line if len(line) <= most else line[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
