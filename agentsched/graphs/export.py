"""AEGs and models as JSON and GraphML, for other programs.

JSON is the node-link form of networkx in an envelope with a schema version. Of an AEG,
``nodes[i].data`` is a ``CallNode`` or ``ToolNode`` (told apart by ``node``), links carry ``kind``; it
can be read back. Of a model, nodes and links carry the numbers themselves. Other programs read either
with ``networkx.node_link_graph(document["graph"], edges="edges")``.

GraphML (yEd, Gephi, igraph) has typed attributes on nodes, edges and the graph; what is not known is
absent there. Text that XML cannot carry shows as replacement characters.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
import networkx as nx

from agentsched.graphs.aeg import Aeg, CallNode, Node
from agentsched.graphs.model import AegModel

SCHEMA = "agentsched.aeg"
VERSION = 1
MODEL_SCHEMA = "agentsched.aeg-model"
MODEL_VERSION = 1
_KINDS = ("asks", "answers", "continues")


class AegFormatError(ValueError):
    """The document is not an AEG, is of a newer version, or is damaged; the message says where."""


class _Vertex(msgspec.Struct):
    id: str
    data: Node


class _Link(msgspec.Struct):
    source: str
    target: str
    kind: str


class _Graph(msgspec.Struct):
    nodes: list[_Vertex]
    edges: list[_Link]


class _Document(msgspec.Struct, kw_only=True):
    schema: str
    version: int
    program: str
    tenant: str
    opened_s: float
    closed_s: float | None
    warnings: list[str]
    graph: _Graph


class _Envelope(msgspec.Struct):
    schema: str = ""
    version: int = 0


def to_json(aeg: Aeg) -> bytes:
    """The program's graph as one JSON document. Times stay monotonic seconds of the recording host."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "program": aeg.program,
        "tenant": aeg.tenant,
        "opened_s": aeg.opened_s,
        "closed_s": aeg.closed_s,
        "warnings": aeg.warnings,
        "graph": nx.node_link_data(aeg.graph, edges="edges"),
    }
    return msgspec.json.encode(document)


def from_json(text: bytes | str) -> Aeg:
    """Read what ``to_json`` wrote. Raises ``AegFormatError``."""
    try:
        envelope = msgspec.json.decode(text, type=_Envelope)
        if envelope.schema != SCHEMA:
            raise AegFormatError(f"schema is {envelope.schema!r}, expected {SCHEMA!r}")
        if not 1 <= envelope.version <= VERSION:
            raise AegFormatError(f"version is {envelope.version}; this release reads up to {VERSION}")
        document = msgspec.json.decode(text, type=_Document)
    except msgspec.MsgspecError as error:
        raise AegFormatError(f"not an AEG: {error}") from None
    return _rebuild(document)


def model_to_json(model: AegModel) -> bytes:
    """The model as one JSON document."""
    document = {
        "schema": MODEL_SCHEMA,
        "version": MODEL_VERSION,
        "programs": model.programs,
        "graph": nx.node_link_data(model_graph(model), edges="edges"),
    }
    return msgspec.json.encode(document)


def model_graph(model: AegModel) -> nx.DiGraph[str]:
    """States with their numbers (tokens, seconds), and transitions with count and probability."""
    graph: nx.DiGraph[str] = nx.DiGraph(programs=model.programs)
    for state in model.states:
        graph.add_node(state, calls=model.calls(state))
        tokens = model.tokens(state)
        if tokens is not None:
            graph.add_node(state, gap_median_s=float(model.gap_median_s(state)), **asdict(tokens))
    for state, following, count in model.transitions():
        graph.add_edge(state, following, count=count, probability=model.probability(state, following))
        graph.nodes[following].setdefault("calls", model.calls(following))
    return graph


def to_graphml(subject: Aeg | AegModel) -> bytes:
    """An AEG or a model as a GraphML document, UTF-8."""
    graph = model_graph(subject) if isinstance(subject, AegModel) else _flat(subject)
    legal: nx.DiGraph[str] = nx.DiGraph()
    legal.graph.update(_plain(graph.graph))
    ids: dict[str, str] = {}
    for number, name in enumerate(graph):
        # numbered, so that two that differ in what XML cannot carry stay two
        ids[name] = name if legible(name) == name else f"{legible(name)} #{number}"
        legal.add_node(ids[name], **_plain(graph.nodes[name]))
    for tail, head, numbers in graph.edges(data=True):
        legal.add_edge(ids[tail], ids[head], **_plain(numbers))
    lines = nx.generate_graphml(legal, named_key_ids=True)
    return ('<?xml version="1.0" encoding="UTF-8"?>\n' + "\n".join(lines) + "\n").encode()


def legible(text: str) -> str:
    """Text as XML can carry it: control characters become visible replacement characters."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _flat(aeg: Aeg) -> nx.DiGraph[str]:
    graph: nx.DiGraph[str] = nx.DiGraph(
        program=aeg.program, tenant=aeg.tenant, opened_s=aeg.opened_s, closed_s=aeg.closed_s
    )
    for call in aeg.calls:
        graph.add_node(call.node_id, kind="call", **msgspec.structs.asdict(call))
    for tool in aeg.tools:
        graph.add_node(tool.node_id, kind="tool", **msgspec.structs.asdict(tool))
    for tail, head, relation in aeg.edges():
        graph.add_edge(tail, head, kind=relation)
    return graph


def _plain(attributes: dict[str, Any]) -> dict[str, str | int | float]:
    """Without what is unknown; times and sums as floats even where they happen to be whole."""
    plain: dict[str, str | int | float] = {}
    for key, value in attributes.items():
        if isinstance(value, str):
            plain[key] = legible(value)
        elif value is not None:
            plain[key] = float(value) if key.endswith(("_s", "_mean", "_p50", "_p90")) else value
    return plain


def _rebuild(document: _Document) -> Aeg:
    aeg = Aeg(document.program, document.opened_s, document.tenant)
    aeg.closed_s, aeg.warnings = document.closed_s, document.warnings
    for vertex in document.graph.nodes:
        node = vertex.data
        if vertex.id != node.node_id or vertex.id in aeg.graph:
            raise AegFormatError(f"node {vertex.id!r} is doubled or does not match its data")
        if isinstance(node, CallNode):
            aeg.add_call(node)
        else:
            aeg.add_tool(node)
    for link in document.graph.edges:
        if link.source not in aeg.graph or link.target not in aeg.graph or link.kind not in _KINDS:
            raise AegFormatError(f"edge {link.source!r} -> {link.target!r} ({link.kind!r}) is not legal")
        aeg.graph.add_edge(link.source, link.target, kind=link.kind)
    if not nx.is_directed_acyclic_graph(aeg.graph):
        raise AegFormatError("the graph has a circle; an AEG runs forward in time")
    return aeg
