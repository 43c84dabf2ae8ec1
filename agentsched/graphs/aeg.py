"""Agent execution graphs (AEGs): what each program did, captured as it runs.

``Capture`` is fed every event and keeps one ``Aeg`` a program: a ``networkx.DiGraph`` whose nodes
are calls and tool calls. Node ids are ``call:<id>`` and ``tool:<id>``; the node's record
(``CallNode`` or ``ToolNode``) is its attribute ``data``. Edges, told apart by their attribute ``kind``:

* ``asks``       call -> tool call that its answer asked for, joined by the tool call's id;
* ``answers``    tool call -> the call that carries its result first (again if that call was aborted);
* ``continues``  call -> next call of the program, where no tool lies between.

A capture watches: it never raises on a legal event. What does not fit (an unknown name, a step out
of order, a result that nobody asked for) is kept as a warning, on the program where one is known.
Hence reports may arrive in odd order, and a program can be resumed after it was closed.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import networkx as nx

from agentsched.core import events as ev

MAX_WARNINGS = 100
"""Kept for each program; what comes later adds nothing new."""


class CallNode(msgspec.Struct, kw_only=True, tag_field="node", tag="call"):
    """One call. Times are monotonic seconds, ``None`` until they are known; counts are tokens.

    ``started_s`` is when it was first begun; a preempted call that is begun again adds a ``restart``.
    """

    call: str
    index: int
    arrived_s: float
    prompt_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    recomputed_tokens: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    aborted_s: float | None = None
    abort_reason: str = ""
    restarts: int = 0

    @property
    def node_id(self) -> str:
        return f"call:{self.call}"

    @property
    def ended_s(self) -> float | None:
        """When it finished or was aborted."""
        return self.aborted_s if self.finished_s is None else self.finished_s


class ToolNode(msgspec.Struct, kw_only=True, tag_field="node", tag="tool"):
    """One tool call. ``command`` is the class of its command, "" if not known."""

    tool_call: str
    tool: str = ""
    command: str = ""
    started_s: float | None = None
    finished_s: float | None = None
    exit_status: int | None = None
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def node_id(self) -> str:
        return f"tool:{self.tool_call}"

    @property
    def label(self) -> str:
        """What people call it: its command class, or else its function."""
        return self.command or self.tool or self.tool_call


Node = CallNode | ToolNode


class Aeg:
    """The graph of one program. ``Capture`` writes it; everyone else reads."""

    def __init__(self, program: str, opened_s: float, tenant: str = "default") -> None:
        self.program = program
        self.tenant = tenant
        self.opened_s = opened_s
        self.closed_s: float | None = None
        self.warnings: list[str] = []
        self.graph: nx.DiGraph[str] = nx.DiGraph()
        self._calls: list[CallNode] = []
        self._tools: dict[str, ToolNode] = {}

    @property
    def calls(self) -> list[CallNode]:
        """In order of arrival."""
        return list(self._calls)

    @property
    def tools(self) -> list[ToolNode]:
        """In the order in which they were first heard of."""
        return list(self._tools.values())

    def tool(self, tool_call: str) -> ToolNode | None:
        return self._tools.get(tool_call)

    def edges(self) -> Iterator[tuple[str, str, str]]:
        """(from, to, kind)."""
        for tail, head, attributes in self.graph.edges(data=True):
            yield tail, head, str(attributes["kind"])

    def warn(self, text: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)

    def add_call(self, node: CallNode) -> None:
        self._calls.append(node)
        self.graph.add_node(node.node_id, data=node)

    def add_tool(self, node: ToolNode) -> ToolNode:
        self._tools[node.tool_call] = node
        self.graph.add_node(node.node_id, data=node)
        return node

    def connect(self, tail: Node, head: Node, kind: str) -> None:
        """Add an edge, unless it would close a circle: time runs one way, so such a claim is wrong."""
        if nx.has_path(self.graph, head.node_id, tail.node_id):
            self.warn(f"{tail.node_id} {kind} {head.node_id} would close a circle; left out")
            return
        self.graph.add_edge(tail.node_id, head.node_id, kind=kind)

    def answered(self, tool: ToolNode) -> bool:
        """Whether a call that was not aborted carries the result already."""
        heads = (self.graph.nodes[head]["data"] for head in self.graph.successors(tool.node_id))
        return any(call.aborted_s is None for call in heads)


class Capture:
    """Builds the AEGs of all programs from their events. ``programs`` is in order of first mention."""

    def __init__(self) -> None:
        self.programs: dict[str, Aeg] = {}
        self.warnings: list[str] = []
        self._calls: dict[str, tuple[Aeg, CallNode]] = {}

    def feed(self, now: float, event: ev.AnyEvent) -> None:
        """Take one event at ``now``, monotonic seconds."""
        match event:
            case ev.ProgramOpened():
                self._aeg(event.program, now).tenant = event.tenant
            case ev.ProgramClosed():
                self._aeg(event.program, now).closed_s = now
            case ev.CallArrived():
                self._arrived(now, event)
            case ev.CallStarted() | ev.FirstToken() | ev.CallFinished() | ev.CallAborted():
                self._advanced(now, event)
            case ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                self._tool(now, event)
            case _:
                pass  # engines and wake-ups are no program's doing

    def forget(self, program: str) -> Aeg | None:
        """Give up a program's graph, for hosts that run for long."""
        aeg = self.programs.pop(program, None)
        for node in aeg.calls if aeg else ():
            self._calls.pop(node.call, None)
        return aeg

    def _aeg(self, program: str, now: float) -> Aeg:
        if program not in self.programs:
            self.programs[program] = Aeg(program, now)
        return self.programs[program]

    def _arrived(self, now: float, event: ev.CallArrived) -> None:
        aeg = self._aeg(event.program, now)
        if event.call in self._calls:
            aeg.warn(f"call {event.call} arrived twice; the second arrival is left out")
            return
        if aeg.closed_s is not None:
            aeg.warn(f"call {event.call} arrived after the program was closed")
            aeg.closed_s = None
        before = _last_finished(aeg)
        node = CallNode(
            call=event.call, index=len(aeg.calls), arrived_s=now, prompt_tokens=event.prompt_tokens
        )
        aeg.add_call(node)
        self._calls[event.call] = (aeg, node)
        joined = False
        for tool_call in event.answers:
            tool = aeg.tool(tool_call)
            if tool is None:
                aeg.warn(f"call {event.call} answers {tool_call}, which nobody asked for")
            elif not aeg.answered(tool):
                aeg.connect(tool, node, "answers")
                joined = True
        if before is not None and not joined:
            aeg.connect(before, node, "continues")

    def _advanced(
        self, now: float, event: ev.CallStarted | ev.FirstToken | ev.CallFinished | ev.CallAborted
    ) -> None:
        if event.call not in self._calls:
            if len(self.warnings) < MAX_WARNINGS:
                self.warnings.append(f"{type(event).__name__} of call {event.call}, which never arrived")
            return
        aeg, node = self._calls[event.call]
        if node.ended_s is not None:
            aeg.warn(f"{type(event).__name__} of call {event.call} after its end; left out")
            return
        match event:
            case ev.CallStarted():
                node.restarts += node.started_s is not None
                node.started_s = now if node.started_s is None else node.started_s
                node.cached_tokens = event.cached_tokens
            case ev.FirstToken():
                node.first_token_s = now if node.first_token_s is None else node.first_token_s
            case ev.CallAborted():
                node.aborted_s, node.abort_reason = now, event.reason
            case ev.CallFinished():
                self._finished(now, aeg, node, event)

    def _finished(self, now: float, aeg: Aeg, node: CallNode, event: ev.CallFinished) -> None:
        node.finished_s = now
        node.prompt_tokens, node.cached_tokens = event.prompt_tokens, event.cached_tokens
        node.output_tokens, node.recomputed_tokens = event.output_tokens, event.recomputed_tokens
        if node.started_s is None:
            aeg.warn(f"call {event.call} finished without a start")
        for ref in event.tool_calls:
            tool = aeg.tool(ref.tool_call) or aeg.add_tool(ToolNode(tool_call=ref.tool_call))
            tool.tool = ref.tool
            aeg.connect(node, tool, "asks")

    def _tool(self, now: float, event: ev.ToolStarted | ev.ToolProgressed | ev.ToolFinished) -> None:
        aeg = self._aeg(event.program, now)
        tool = aeg.tool(event.tool_call) or aeg.add_tool(ToolNode(tool_call=event.tool_call))
        if tool.finished_s is not None:
            aeg.warn(f"{type(event).__name__} of tool call {event.tool_call} after its end; left out")
            return
        match event:
            case ev.ToolStarted():
                if tool.started_s is not None:
                    aeg.warn(f"tool call {event.tool_call} started twice; the first start counts")
                    return
                tool.started_s, tool.tool, tool.command = now, event.tool, event.command
            case ev.ToolProgressed():
                tool.cpu_s = max(tool.cpu_s, event.cpu_s)
                tool.peak_memory_bytes = max(tool.peak_memory_bytes, event.memory_bytes)
            case ev.ToolFinished():
                if tool.started_s is None:
                    aeg.warn(
                        f"tool call {event.tool_call} finished without a start; taken from its wall time"
                    )
                    tool.started_s = now - event.wall_s
                tool.finished_s, tool.exit_status = now, event.exit_status
                tool.cpu_s, tool.peak_memory_bytes = event.cpu_s, event.peak_memory_bytes


def _last_finished(aeg: Aeg) -> CallNode | None:
    ended = [node for node in aeg.calls if node.finished_s is not None]
    return max(ended, key=lambda node: (node.finished_s or 0.0, node.index), default=None)
