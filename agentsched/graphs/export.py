"""AEGs as JSON: the node-link form of networkx in an envelope with a schema version.

``nodes[i].data`` is a ``CallNode`` or ``ToolNode`` (told apart by ``node``); links carry ``kind``.
Other programs read the graph with ``networkx.node_link_graph(document["graph"], edges="edges")``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import networkx as nx

from agentsched.graphs.aeg import Aeg, CallNode, Node

SCHEMA = "agentsched.aeg"
VERSION = 1
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
