"""From a daemon's event log to a trace: a run of one's own can be simulated like anybody else's."""

from __future__ import annotations

from collections.abc import Iterable

from agentsched.core.log import read
from agentsched.graphs.aeg import Aeg, CallNode, Capture, ToolNode
from agentsched.workloads.sessions import Session, TraceTool, TraceTurn

SOURCE = "agentsched"


def sessions_from_log(lines: Iterable[bytes], source: str = SOURCE) -> list[Session]:
    """One session a program that finished a call, in order of arrival.

    Aborted calls are left out: their time is part of the gap before the next call. ``t0`` counts from
    the first call of the log. Raises ``LogError``, naming the line.
    """
    _, entries = read(lines)
    capture = Capture()
    for entry in entries:
        if entry.event is not None:
            capture.feed(entry.now, entry.event)
    kept = [(aeg, calls) for aeg in capture.programs.values() if (calls := _finished(aeg))]
    kept.sort(key=lambda pair: pair[1][0].arrived_s)
    start_s = kept[0][1][0].arrived_s if kept else 0.0
    return [_session(aeg, calls, start_s, source) for aeg, calls in kept]


def _finished(aeg: Aeg) -> list[CallNode]:
    return [call for call in aeg.calls if call.finished_s is not None]


def _session(aeg: Aeg, calls: list[CallNode], start_s: float, source: str) -> Session:
    began_s = calls[0].arrived_s
    following = [*calls[1:], None]
    return Session(
        session=aeg.program,
        source=source,
        kind="root",
        t0=_ms(began_s - start_s),
        tenant=aeg.tenant,
        turns=[_turn(aeg, call, after, began_s) for call, after in zip(calls, following, strict=True)],
    )


def _turn(aeg: Aeg, call: CallNode, after: CallNode | None, began_s: float) -> TraceTurn:
    finished_s = call.finished_s if call.finished_s is not None else call.arrived_s
    tools = [
        _tool(node, began_s)
        for name in aeg.graph.successors(call.node_id)
        if isinstance(node := aeg.graph.nodes[name]["data"], ToolNode)
    ]
    return TraceTurn(
        t=_ms(call.arrived_s - began_s),
        prompt_tokens=call.prompt_tokens,
        output_tokens=call.output_tokens,
        cached_prefix_tokens=call.cached_tokens,
        llm_s=_ms(finished_s - call.arrived_s),
        gap_after_s=None if after is None else max(0.0, _ms(after.arrived_s - finished_s)),
        gap_kind="end" if after is None else "tool" if tools else "unknown",
        tools=tools,
    )


def _tool(node: ToolNode, began_s: float) -> TraceTool:
    """A tool that nobody reported running has a name and no times."""
    started_s, finished_s = node.started_s, node.finished_s
    ended = finished_s is not None
    return TraceTool(
        name=node.tool or node.tool_call,
        command_class=node.command or None,
        start_s=None if started_s is None else _ms(started_s - began_s),
        duration_s=None if started_s is None or finished_s is None else _ms(finished_s - started_s),
        exit=node.exit_status,
        cpu_s=node.cpu_s if ended else None,
        peak_rss_mb=node.peak_memory_bytes / 1e6 if ended else None,
    )


def _ms(seconds: float) -> float:
    """To whole milliseconds, as traces have them."""
    return round(seconds, 3)
